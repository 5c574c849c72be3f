"""Flatness and worst case of quadratics with closed forms, and compared to direct evaluations."""

import math

import pytest
import torch
from cases import MODELS, build, cut, samples
from references import assert_no_trace, loss_and_gradient, trace_of
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from fullbatch.analysis.flatness import flatness, m_sharpness, worst_case
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.losses import loss_function


class Quadratic(nn.Module):
    """Outputs its parameters, [n, 2], for any inputs."""

    def __init__(self, *start: float) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.t.expand(len(inputs), -1)


def quadratic(*start: float) -> FullBatchObjective:
    """L = t_1^2 + 9 t_2^2."""
    blocks = [(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))]
    return FullBatchObjective(
        Quadratic(*start), lambda t, _: (t.square() * torch.tensor([1.0, 9.0])).sum(1).mean(), blocks
    )


FIRST, SECOND = [torch.tensor([1.0, 0.0]).double()], [torch.tensor([0.0, 1.0]).double()]


def test_the_distance_is_the_first_multiple_beyond_the_threshold() -> None:
    """L exceeds 1 beyond t_1 = 1 and beyond t_2 = 1/3."""
    result = flatness(quadratic(0.0, 0.0), [FIRST, SECOND], step_size=0.08, threshold=1.0)
    assert result.distances == pytest.approx([13 * 0.08, 5 * 0.08])
    assert result.num_open == 0
    assert result.mean == pytest.approx(0.72)
    assert result.std == pytest.approx(0.32 * math.sqrt(2))


def test_a_loss_equal_to_the_threshold_does_not_exceed_it() -> None:
    assert flatness(quadratic(0.0, 0.0), [FIRST], step_size=0.5, threshold=1.0).distances == [1.5]


def test_beyond_the_threshold_nothing_is_flat() -> None:
    assert flatness(quadratic(2.0, 0.0), [FIRST, SECOND]).distances == [0.0, 0.0]


def test_a_direction_that_stays_below_is_counted() -> None:
    result = flatness(quadratic(0.0, 0.0), [FIRST, SECOND], step_size=0.1, max_steps=8)
    assert result.distances == pytest.approx([0.8, 0.4])
    assert result.num_open == 1


def test_a_loss_of_nan_exceeds_the_threshold() -> None:
    target = quadratic(0.0, 0.0)
    object.__setattr__(target.sub_batch_objective, "loss_fn", lambda t, _: torch.log(0.25 - t[:, 0]).mean())
    assert flatness(target, [FIRST], step_size=0.1).distances == pytest.approx([0.3])


def test_it_requires_directions_and_a_step() -> None:
    for directions, step_size in (([], 0.1), ([FIRST], 0.0)):
        with pytest.raises(ValueError, match="requires directions and a step_size greater than 0"):
            flatness(quadratic(0.0, 0.0), directions, step_size=step_size)


def test_the_worst_case_of_a_quadratic() -> None:
    """At (3, 0) the gradient points along the first axis."""
    assert worst_case(quadratic(3.0, 0.0), rho=0.5) == pytest.approx(3.5**2 - 9)


def test_the_worst_case_is_along_the_gradient() -> None:
    model, (inputs, labels) = build("tanh"), samples()
    _, g = loss_and_gradient(model, loss_function(), inputs, labels)
    increase = worst_case(FullBatchObjective(model, loss_function(), cut(inputs, labels, [20, 13])), rho=0.3)
    assert increase == pytest.approx(rise(model, inputs, labels, g, 0.3))


def rise(model: nn.Module, inputs: Tensor, labels: Tensor, g: Tensor, rho: float) -> float:
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    before = loss_function()(model(inputs), labels)
    vector_to_parameters(start + rho * g / g.norm(), model.parameters())
    after = loss_function()(model(inputs), labels)
    vector_to_parameters(start, model.parameters())
    return float((after - before).detach())


def test_m_sharpness_perturbs_each_sub_batch_separately() -> None:
    model, sizes = build("tanh"), [11, 11, 11]
    exact = []
    for block in cut(*samples(), sizes):
        g = loss_and_gradient(model, loss_function(), *block)[1]
        exact.append(rise(model, *block, g, 0.3))
    target = FullBatchObjective(model, loss_function(), cut(*samples(), [33]), sub_batch=11)
    assert m_sharpness(target, rho=0.3) == pytest.approx(sum(exact) / 3)
    whole = FullBatchObjective(model, loss_function(), cut(*samples(), [33]))
    assert m_sharpness(whole, rho=0.3) == pytest.approx(worst_case(whole, rho=0.3))
    assert m_sharpness(target, rho=0.3) > worst_case(target, rho=0.3)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_restored(name: str) -> None:
    model = build(name)
    target = FullBatchObjective(model, loss_function(), cut(*samples(), [20, 13]))
    direction = [torch.randn_like(p) for p in model.parameters()]
    before = trace_of(model)
    worst_case(target, 0.1)
    m_sharpness(target, 0.1)
    flatness(target, [direction], step_size=0.3, threshold=3.0)
    assert_no_trace(model, before)
