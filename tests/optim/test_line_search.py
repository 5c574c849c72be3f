"""Line searches: accepted steps satisfy the conditions, recomputed independently; fallbacks, costs and limits."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimization import Counted, Function, minimize, quadratic, rosenbrock
from torch import Tensor, nn

from fullbatch.optim.descent import Descent
from fullbatch.optim.lbfgs import LBFGS
from fullbatch.optim.line_search import NonMonotone, StepRule
from fullbatch.optim.wolfe import Wolfe

EPS = torch.finfo(torch.float64).eps


def wavy(size: int, seed: int) -> Function:
    """Return a smooth function that is not convex and bounded from below."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(size, size, generator=generator, dtype=torch.float64) for _ in range(2))
    return lambda x: (a @ x).square().sum() / 2 + torch.sin(3 * b @ x).sum() + 0.1 * x.pow(4).sum()


def slope(function: Function, x: Tensor, direction: Tensor, h: float = 1e-6) -> float:
    """Return the slope by central differences, accurate to about 1e-7 of the values that occur here."""
    return float((function(x + h * direction) - function(x - h * direction)) / (2 * h))


def assert_wolfe(function: Function, start: Tensor, end: Tensor, search: Wolfe, a: float) -> None:
    direction = (end - start) / a
    before, after = float(function(start)), float(function(end))
    first, last = slope(function, start, direction), slope(function, end, direction)
    rounding = 5 * EPS * abs(before)
    tolerance = 1e-6 * (1 + abs(first))  # of the slopes by differences
    assert after <= before + search.c1 * a * first + rounding + search.c1 * a * tolerance
    assert abs(last) <= search.c2 * abs(first) + tolerance


@given(
    size=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    lr=st.floats(-3, 1).map(lambda e: 10**e),
    c2=st.sampled_from([0.1, 0.5, 0.9]),
    momentum=st.sampled_from([0.0, 0.9]),
    quasi_newton=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_an_accepted_step_satisfies_the_strong_wolfe_conditions(
    size: int, seed: int, lr: float, c2: float, momentum: float, quasi_newton: bool
) -> None:
    function, search = wavy(size, seed), Wolfe(c2=c2, alpha_max=1e3, max_iter=30)
    parameter = nn.Parameter(torch.linspace(-1, 1, size, dtype=torch.float64) + 0.3)
    optimizer: Any = Descent([parameter], lr, momentum, step_rule=search)
    if quasi_newton:
        optimizer = LBFGS([parameter], step_rule=search)
    closure = Counted(function, parameter, optimizer)
    for _ in range(6):
        start = parameter.detach().clone()
        optimizer.step(closure)
        if optimizer.statistics["search_failed"]:
            continue
        if (a := optimizer.statistics["step_length"]) != 0:
            assert_wolfe(function, start, parameter.detach(), search, a)


@given(size=st.integers(1, 5), seed=st.integers(0, 10_000), lr=st.floats(-3, 1).map(lambda e: 10**e))
@settings(max_examples=30, deadline=None)
def test_an_accepted_step_decreases_below_the_largest_of_the_last_losses(size: int, seed: int, lr: float) -> None:
    function, search = wavy(size, seed), NonMonotone(c1=1e-3, interval=3, factor=0.5, max_iter=40)
    parameter = nn.Parameter(torch.linspace(-1, 1, size, dtype=torch.float64) + 0.3)
    optimizer = Descent([parameter], lr, step_rule=search)
    losses: list[float] = []
    for _ in range(8):
        start = parameter.detach().clone()
        losses.append(float(optimizer.step(Counted(function, parameter, optimizer))))
        a = optimizer.statistics["step_length"]
        assert not optimizer.statistics["search_failed"]
        direction = (parameter.detach() - start) / a
        bound = max(losses[-3:]) + search.c1 * a * slope(function, start, direction)
        assert float(function(parameter.detach())) <= bound + 1e-8 * (1 + abs(bound))
        assert math.log(a, 0.5) == pytest.approx(round(math.log(a, 0.5)))  # a power of the factor


def test_non_monotone_lets_the_loss_rise_where_armijo_does_not() -> None:
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)

    def rises(interval: int) -> int:
        losses = minimize(rosenbrock, start, lambda p: Descent(p, 0.1, step_rule=NonMonotone(interval=interval)), 60)[1]
        return sum(later > earlier for earlier, later in itertools.pairwise(losses))

    assert rises(1) == 0 < rises(10)


def test_wolfe_solves_rosenbrock() -> None:
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    end, losses, _ = minimize(
        rosenbrock, start, lambda p: Descent(p, 1e-3, 0.9, nesterov=True, step_rule=Wolfe()), 1200
    )
    assert losses[-1] < 1e-8
    torch.testing.assert_close(end, torch.ones_like(end), rtol=0, atol=1e-3)


def test_the_search_finds_the_minimum_of_a_parabola_exactly() -> None:
    for lr in (1e-3, 1.0, 50.0):
        search = Wolfe(c2=1e-6, alpha_max=1e6, max_iter=30)
        function, start = (lambda x: (x - 3).square().sum()), torch.zeros(1, dtype=torch.float64)
        end = minimize(function, start, lambda p, lr=lr, s=search: Descent(p, lr, step_rule=s), 1)[0]
        torch.testing.assert_close(end, torch.full_like(end, 3.0), rtol=1e-6, atol=0)


def test_losses_are_evaluated_without_gradients_where_these_are_not_needed() -> None:
    function, solution = quadratic(5)
    start = torch.zeros_like(solution)
    for search, gradients in ((NonMonotone(), 20), (NonMonotone(interval=1, factor=0.5), 20)):
        _, _, closure = minimize(function, start, lambda p, s=search: Descent(p, 10.0, step_rule=s), 20)
        assert closure.num_gradients == gradients
        assert closure.num_losses > 21
    # too high trials of a Wolfe search cost no gradient: the first trial of each step is 1000 times too long
    _, _, closure = minimize(function, start, lambda p: Descent(p, 1e3, step_rule=Wolfe(max_iter=20)), 5)
    assert closure.num_losses > closure.num_gradients


class Impure(Counted):
    """A loss that cannot be evaluated without gradients."""

    pure = False

    def loss(self) -> Tensor:
        raise AssertionError("the loss costs as much as the gradient here")


@pytest.mark.parametrize("search", [Wolfe(), NonMonotone()])
def test_where_the_loss_needs_gradients_the_slope_is_evaluated_with_it(search: StepRule) -> None:
    parameter = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    optimizer = Descent([parameter], 0.1, step_rule=search)
    closure = Impure(rosenbrock, parameter, optimizer)
    for _ in range(3):
        optimizer.step(closure)
    assert not optimizer.statistics["search_failed"]


@pytest.mark.parametrize("search", [Wolfe(max_iter=1, c2=1e-3), NonMonotone(max_iter=1)])
def test_a_search_that_fails_reports_it_and_takes_the_lowest_point_or_stays(search: StepRule) -> None:
    for lr, moved in ((0.01, isinstance(search, Wolfe)), (10.0, False)):
        parameter = nn.Parameter(torch.tensor([4.0], dtype=torch.float64))
        optimizer = Descent([parameter], lr, 0.9, step_rule=search)
        optimizer.step(Counted(lambda x: x.square().sum(), parameter, optimizer))
        failed = moved or lr == 10.0
        assert optimizer.statistics["search_failed"] == failed
        assert (parameter.item() == 4.0) == (lr == 10.0)
        # the momentum is reset where the parameters stay
        assert ("momentum_buffer" in optimizer.state[parameter]) == (lr != 10.0)


def test_a_direction_that_does_not_descend_resets_the_momentum() -> None:
    parameter = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Descent([parameter], 0.1, 0.9, step_rule=Wolfe())
    optimizer.state[parameter]["momentum_buffer"] = torch.tensor([-100.0], dtype=torch.float64)
    optimizer.step(Counted(lambda x: x.square().sum(), parameter, optimizer))
    assert not optimizer.statistics["search_failed"]
    assert 0 <= abs(parameter.item()) < 1
    assert float(optimizer.state[parameter]["momentum_buffer"]) == 2.0


@pytest.mark.parametrize("search", [Wolfe(), NonMonotone()])
@pytest.mark.parametrize("lr", [0.0, 0.1])
def test_nothing_moves_at_learning_rate_0_or_at_a_stationary_point(search: StepRule, lr: float) -> None:
    parameter = nn.Parameter(torch.tensor([2.0 if lr == 0 else 0.0], dtype=torch.float64))
    before = parameter.detach().clone()
    optimizer = Descent([parameter], lr, step_rule=search)
    closure = Counted(lambda x: x.square().sum(), parameter, optimizer)
    optimizer.step(closure)
    assert torch.equal(parameter, before)
    assert optimizer.statistics == {"step_length": 0.0, "search_failed": 0.0}
    assert (closure.num_gradients, closure.num_losses) == (1, 0)


@pytest.mark.parametrize("search", [Wolfe(max_iter=30), NonMonotone(interval=1, max_iter=30)])
def test_points_where_the_loss_is_infinite_are_too_far(search: StepRule) -> None:
    def barrier(x: Tensor) -> Tensor:
        return (-torch.log(1 - x) - torch.log(1 + x)).sum()

    start = torch.tensor([0.9], dtype=torch.float64)
    losses = minimize(barrier, start, lambda p: Descent(p, 5.0, step_rule=search), 10)[1]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 1e-6


def test_a_longer_step_than_alpha_max_is_never_tried() -> None:
    lengths = []

    class Recorded(Wolfe):
        def advance(self, line: Any, memory: dict[str, Any]) -> Any:
            result = super().advance(line, memory)
            lengths.extend(trial.a for trial in line.trials)
            return result

    search = Recorded(alpha_max=7.0, c2=0.1, max_iter=30)
    start = torch.ones(1, dtype=torch.float64)
    minimize(lambda x: x.square().sum(), start, lambda p: Descent(p, 1e-3, step_rule=search), 2)
    assert max(lengths) == 7.0
