"""Momentum descent equals torch's SGD bitwise; restarting resets the momentum when the loss has risen."""

import math

import pytest
import torch
from cases import build, samples
from optimization import minimize, quadratic, rosenbrock
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.optim.descent import Descent
from fullbatch.optim.line_search import Restarting
from fullbatch.optim.weight_decay import parameter_groups

OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9, "dampening": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay": {"momentum": 0.5, "weight_decay": 0.01},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_with_the_fixed_step_it_is_sgd_bitwise(options: dict[str, float], dtype: torch.dtype) -> None:
    ours, theirs = (build("convolutional").to(dtype) for _ in range(2))
    optimizers = [
        kind(parameter_groups(model, only_linear_layers=True), lr=0.1, **options)
        for kind, model in ((Descent, ours), (torch.optim.SGD, theirs))
    ]
    for step in range(5):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):

            def closure(
                model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer, seed: int = step
            ) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(samples(seed=seed)[0].to(dtype)), samples()[1])
                loss.backward()
                return loss

            optimizer.step(closure)
    for parameter, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(parameter, expected)
    assert optimizers[0].state_dict()["state"].keys() == optimizers[1].state_dict()["state"].keys()


def test_nesterov_needs_momentum_and_no_dampening() -> None:
    for options in ({}, {"momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(ValueError, match="nesterov=True: requires a momentum and dampening=0"):
            Descent([nn.Parameter(torch.zeros(1))], 0.1, nesterov=True, **options)


def test_restarting_follows_its_formula() -> None:
    function, start = rosenbrock, torch.tensor([-1.2, 1.0], dtype=torch.float64)
    end, losses, _ = minimize(function, start, lambda p: Descent(p, 1e-3, 0.9, step_rule=Restarting()), 60)
    x, momentum, last, restarts = start.clone(), torch.zeros(2, dtype=torch.float64), math.inf, 0
    for expected in losses[:-1]:
        point = x.clone().requires_grad_()
        loss = function(point)
        gradient = torch.autograd.grad(loss, point)[0]
        if loss > last:
            momentum, restarts = torch.zeros(2, dtype=torch.float64), restarts + 1
        last, momentum = loss.detach(), 0.9 * momentum + gradient
        x = x - 1e-3 * momentum
        assert expected == pytest.approx(float(last), rel=1e-12)
    torch.testing.assert_close(end, x, rtol=1e-10, atol=1e-12)
    assert restarts > 0


def test_restarting_is_faster_where_momentum_swings() -> None:
    function, solution = quadratic(20, condition=100)
    plain, restarted = (
        minimize(function, torch.zeros_like(solution), lambda p, r=rule: Descent(p, 1.0, 0.98, step_rule=r), 150)[1]
        for rule in (None, Restarting())
    )
    assert restarted[-1] < 1e-2 * plain[-1]


def test_nesterov_has_its_accelerated_rate() -> None:
    """On a quadratic of condition k: (1 - 1/sqrt(k)) per step, against (1 - 1/k) without momentum."""
    condition, steps = 400.0, 200
    function, solution = quadratic(30, condition)
    root = math.sqrt(condition)
    momentum = (root - 1) / (root + 1)
    start = torch.zeros_like(solution)
    fast = minimize(function, start, lambda p: Descent(p, 1.0, momentum, nesterov=True), steps)[1]
    slow = minimize(function, start, lambda p: Descent(p, 1.0), steps)[1]
    bound = (1 - 1 / root) ** steps * (fast[0] + (solution @ solution) / condition / 2)
    assert fast[-1] <= bound
    assert slow[-1] > 30 * bound
