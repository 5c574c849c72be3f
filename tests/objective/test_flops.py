"""Operations of an evaluation: those of the layers, per sample, whatever the block and the regularizer."""

import pytest
import torch
from cases import build, cut, samples
from references import assert_no_trace, trace_of
from torch import nn
from torch.nn import functional as F

from fullbatch.objective.flops import count_flops
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer


def test_products_count_two_forward_and_four_backward_but_for_the_gradient_of_the_inputs() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    counted = count_flops(FullBatchObjective(model, F.cross_entropy, []), cut(*samples(), [30, 3]))
    first, second = 2 * 32 * 5, 2 * 5 * 3
    assert counted.loss == first + second
    assert counted.gradient == 2 * first + 3 * second  # nobody asks for the gradient of the images


def test_convolutions_count_by_their_outputs() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 3)).double()
    counted = count_flops(FullBatchObjective(model, F.cross_entropy, []), cut(*samples(), [33]))
    convolution, linear = 2 * (4 * 4 * 3) * (2 * 3 * 3), 2 * 48 * 3
    assert (counted.loss, counted.gradient) == (convolution + linear, 2 * convolution + 3 * linear)


@pytest.mark.parametrize("implementation", ["forward-differences", "central-differences"])
def test_a_regularizer_takes_evaluations_of_the_same_cost_and_leaves_no_trace(implementation: str) -> None:
    model = build("batchnorm")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    regularizer = GradRegularizer(model, optimizer, F.cross_entropy, block_strength=0.5, implementation=implementation)
    plain, regularized = (FullBatchObjective(model, F.cross_entropy, [], regularizer=r) for r in (None, regularizer))
    before, data = trace_of(model), cut(*samples(4), [4])
    assert count_flops(regularized, data) == count_flops(plain, data)
    assert_no_trace(model, before)
