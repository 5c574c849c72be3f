"""L-BFGS compared to the dense recursion, torch and SciPy."""

import math

import numpy as np
import pytest
import torch
from optimization import Counted, as_numpy, minimize, quadratic, rosenbrock
from scipy.optimize import minimize as scipy_minimize
from torch import Tensor, nn

from fullbatch.optim.lbfgs import CHANGES, LBFGS, STEPS
from fullbatch.optim.line_search import NonMonotone, StepRule
from fullbatch.optim.wolfe import Wolfe

START = torch.tensor([-1.2, 1.0], dtype=torch.float64)
ARMIJO = NonMonotone(interval=1, factor=0.5)


@pytest.mark.parametrize("search", [Wolfe(alpha_max=math.inf), ARMIJO])
@pytest.mark.parametrize("size", [2, 10])
def test_it_solves_rosenbrock(search: Wolfe, size: int) -> None:
    start = START.repeat(size // 2)
    end, losses, _ = minimize(rosenbrock, start, lambda p: LBFGS(p, step_rule=search), 40 * size)
    assert losses[-1] < 1e-16
    torch.testing.assert_close(end, torch.ones_like(end), rtol=0, atol=1e-8)


@pytest.mark.parametrize("size", [3, 10, 25])
def test_it_ends_on_a_quadratic_in_about_as_many_steps_as_dimensions(size: int) -> None:
    function, solution = quadratic(size)
    search = Wolfe(c2=0.01, alpha_max=math.inf)
    options = {"history_size": size, "damping": False, "step_rule": search}
    end, losses, _ = minimize(function, torch.zeros_like(solution), lambda p: LBFGS(p, **options), size + 5)
    assert losses[-1] < 1e-20
    torch.testing.assert_close(end, solution, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["rosenbrock2", "rosenbrock10", "quadratic20"])
def test_it_needs_at_most_one_and_a_half_times_the_evaluations_of_scipy(name: str) -> None:
    function, start = {
        "rosenbrock2": (rosenbrock, START),
        "rosenbrock10": (rosenbrock, START.repeat(5)),
        "quadratic20": (quadratic(20)[0], torch.zeros(20, dtype=torch.float64)),
    }[name]
    options = {"gtol": 1e-8, "ftol": 1e-15, "maxcor": 10}
    theirs = scipy_minimize(as_numpy(function), start.numpy(), jac=True, method="L-BFGS-B", options=options)
    parameter = nn.Parameter(start.clone())
    optimizer = LBFGS([parameter])
    closure = Counted(function, parameter, optimizer)
    while float(optimizer.step(closure)) > max(theirs.fun, 1e-16):
        assert closure.num_gradients + closure.num_losses / 3 <= 1.5 * theirs.nfev


@pytest.mark.parametrize("size", [2, 10])
def test_it_needs_at_most_one_and_a_half_times_the_evaluations_of_torch(size: int) -> None:
    start, counts = START.repeat(size // 2), [0]
    parameter = nn.Parameter(start.clone())
    theirs = torch.optim.LBFGS([parameter], max_iter=500, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        counts[0] += 1
        theirs.zero_grad()
        loss = rosenbrock(parameter)
        loss.backward()
        return loss

    theirs.step(closure)
    reached = float(rosenbrock(parameter.detach()))
    ours = nn.Parameter(start.clone())
    optimizer = LBFGS([ours])
    counted = Counted(rosenbrock, ours, optimizer)
    while float(optimizer.step(counted)) > max(reached, 1e-16):
        assert counted.num_gradients + counted.num_losses / 3 <= 1.5 * counts[0]


def test_the_two_loops_are_the_dense_update() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer, matrix = LBFGS([parameter]), torch.randn(6, 6, dtype=torch.float64)
    matrix = matrix @ matrix.T + torch.eye(6, dtype=torch.float64)
    pairs = [(s, matrix @ s) for s in torch.randn(4, 6, dtype=torch.float64)]
    optimizer.state[parameter] = {STEPS: [s for s, _ in pairs], CHANGES: [y for _, y in pairs]}
    s, y = pairs[-1]
    inverse = torch.eye(6, dtype=torch.float64) * (s @ y) / (y @ y)
    for s, y in pairs:
        left = torch.eye(6, dtype=torch.float64) - torch.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + torch.outer(s, s) / (s @ y)
    gradient = torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(optimizer._direction([gradient])[0], inverse @ gradient)


def test_with_the_fixed_step_it_takes_the_steps_of_torch() -> None:
    """torch's first step is min(1, 1/|g|_1) long, ours min(1, 1/|g|_2); in one dimension the two are equal."""

    def function(x: Tensor) -> Tensor:
        return (x - 2).pow(4).sum() + x.square().sum()

    start = torch.tensor([5.0], dtype=torch.float64)
    ours = minimize(function, start, lambda p: LBFGS(p, damping=False, eps=1e-10, step_rule=StepRule()), 8)[0]
    parameter = nn.Parameter(start.clone())
    theirs = torch.optim.LBFGS([parameter], lr=1.0, max_iter=8, history_size=10, tolerance_grad=0, tolerance_change=0)

    def closure() -> Tensor:
        theirs.zero_grad()
        loss = function(parameter)
        loss.backward()
        return loss

    theirs.step(closure)
    torch.testing.assert_close(ours, parameter.detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("damping", [False, True])
def test_pairs_without_curvature_are_skipped_or_damped(damping: bool) -> None:
    """Armijo's rule accepts steps of negative curvature: the cosine is concave here."""
    parameter = nn.Parameter(torch.tensor([0.3, 0.2], dtype=torch.float64))
    optimizer = LBFGS([parameter], damping=damping, eps=0.1, step_rule=ARMIJO)
    closure = Counted(lambda x: torch.cos(x).sum(), parameter, optimizer)
    start = closure.evaluate()
    before = parameter.detach().clone()
    optimizer.step(closure)
    s, change = parameter.detach() - before, closure.evaluate().gradient[0] - start.gradient[0]
    assert s @ change < 0
    assert (optimizer.statistics["pair_damped"], optimizer.statistics["pair_skipped"]) == (damping, not damping)
    pairs = optimizer._pairs()
    assert len(pairs) == damping
    if damping:
        expected = -optimizer.statistics["step_length"] * start.gradient[0]
        kept = pairs[0][1][0]
        assert float(s @ kept) == pytest.approx(0.1 * float(s @ expected))
        theta = 0.9 * (s @ expected) / (s @ expected - s @ change)
        torch.testing.assert_close(kept, theta * change + (1 - theta) * expected)


def test_weight_decay_is_part_of_the_objective() -> None:
    function, start = rosenbrock, START
    ours = minimize(function, start, lambda p: LBFGS(p, weight_decay=0.3), 60)[0]
    theirs = scipy_minimize(
        as_numpy(lambda x: function(x) + 0.15 * x.square().sum()), start.numpy(), jac=True, options={"gtol": 1e-10}
    )
    np.testing.assert_allclose(ours.numpy(), theirs.x, rtol=1e-6)


def test_a_search_that_finds_no_lower_point_deletes_the_history() -> None:
    parameter = nn.Parameter(START.clone())
    optimizer = LBFGS([parameter])
    closure = Counted(rosenbrock, parameter, optimizer)
    for _ in range(4):
        optimizer.step(closure)
    assert len(optimizer._pairs()) == 4
    optimizer.step_rule = Wolfe(c2=1e-12, max_iter=1)
    optimizer.step(closure)
    assert optimizer.statistics["search_failed"] == 1
    assert len(optimizer._pairs()) == 5  # the fallback was lower, and its pair is valid
    optimizer.param_groups[0]["lr"] = 1e6
    optimizer.step(closure)
    assert optimizer.statistics["search_failed"] == 1
    assert not optimizer._pairs()
