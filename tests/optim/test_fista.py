"""FISTA follows its formula and has its rate; projections and restart."""

import math

import pytest
import torch
from optimization import minimize, quadratic
from scipy.optimize import minimize as scipy_minimize
from torch import Tensor

from fullbatch.optim.descent import Descent
from fullbatch.optim.fista import FISTA, box, l2_ball


@pytest.mark.parametrize("pqr", [(1.0, 1.0, 4.0), (0.05, 0.5, 4.0), (1.0, 1.0, 3.9)])
def test_it_follows_its_formula(pqr: tuple[float, float, float]) -> None:
    function, solution = quadratic(5)
    start = torch.zeros_like(solution)
    end = minimize(function, start, lambda p: FISTA(p, 0.7, pqr), 8)[0]
    (p, q, r), x, y, t = pqr, start, start, 1.0
    for _ in range(8):
        point = y.clone().requires_grad_()
        x_plus = y - 0.7 * torch.autograd.grad(function(point), point)[0]
        t_plus = (p + math.sqrt(q + r * t**2)) / 2
        x, y, t = x_plus, x_plus + (t - 1) / t_plus * (x_plus - x), t_plus
    torch.testing.assert_close(end, y, rtol=1e-12, atol=1e-14)


def test_it_has_its_accelerated_rate() -> None:
    """f(x_k) - f* <= 2 L ||x_0 - x*||^2 / (k + 1)^2 with L = 1; plain gradient descent is far from it."""
    function, solution = quadratic(50, condition=1e6)
    start = torch.zeros_like(solution)
    for steps in (10, 50, 200):
        bound = 2 * float(solution @ solution) / (steps + 1) ** 2
        assert x_after(function, start, steps) <= bound
    without_momentum = minimize(function, start, lambda p: Descent(p, 1.0), 200)[1][-1]
    assert x_after(function, start, 200) < 0.1 * without_momentum


def x_after(function, start: Tensor, steps: int) -> float:  # type: ignore[no-untyped-def]
    """Return the loss at the iterate x; the parameters are y."""
    built: list[FISTA] = []
    minimize(function, start, lambda p: built.append(FISTA(p, 1.0)) or built[0], steps)
    return float(function(next(iter(built[0].state.values()))["x"]))


def test_restarting_converges_linearly() -> None:
    function, solution = quadratic(20, condition=100)
    plain, restarted = (
        minimize(function, torch.zeros_like(solution), lambda p, r=restart: FISTA(p, 1.0, restart=r), 150)[1][-1]
        for restart in (False, True)
    )
    assert restarted < 1e-3 * plain


@pytest.mark.parametrize("name", ["l2-ball", "box"])
def test_with_a_projection_it_finds_the_constrained_minimum(name: str) -> None:
    function, solution = quadratic(6, condition=10)
    radius = 0.5 * float(solution.norm()) if name == "l2-ball" else 0.5 * float(solution.abs().max())
    projection = {"l2-ball": l2_ball, "box": box}[name](radius)
    end = minimize(function, torch.zeros_like(solution), lambda p: FISTA(p, 1.0, projection=projection), 400)[0]
    constraint = {"type": "ineq", "fun": lambda x: radius**2 - x @ x}
    theirs = scipy_minimize(
        lambda x: float(function(torch.tensor(x))),
        torch.zeros_like(solution).numpy(),
        method="SLSQP",
        tol=1e-14,
        **({"constraints": [constraint]} if name == "l2-ball" else {"bounds": [(-radius, radius)] * 6}),
    )
    assert float(function(end)) == pytest.approx(theirs.fun, rel=1e-7)
    torch.testing.assert_close(end, torch.tensor(theirs.x), rtol=0, atol=1e-3)


def test_tensors_are_projected_as_one_vector() -> None:
    inside, outside = [torch.tensor([0.3]), torch.tensor([0.4])], [torch.tensor([3.0]), torch.tensor([-4.0])]
    for tensors, expected in ((inside, [0.3, 0.4]), (outside, [0.6, -0.8])):
        l2_ball(1.0)(tensors)
        torch.testing.assert_close(torch.cat(tensors), torch.tensor(expected))
    box(0.5)(outside)
    torch.testing.assert_close(torch.cat(outside), torch.tensor([0.5, -0.5]))
