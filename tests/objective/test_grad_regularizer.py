"""The regularizer for a training loop of one's own: an adapter whose hook on the model goes away with it."""

import gc

import pytest
import torch
from cases import build, cut, samples
from references import vector
from torch import nn
from torch.nn import functional as F

from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradientPenalty, GradRegularizer


def regularizer_on(model: nn.Module) -> GradRegularizer:
    return GradRegularizer(model, torch.optim.SGD(model.parameters(), 0.1), F.cross_entropy, block_strength=0.5)


def num_hooks(model: nn.Module) -> int:
    return len(model._forward_pre_hooks)


def test_close_removes_the_hook_and_later_calls_raise() -> None:
    model, (inputs, labels) = build("tanh"), samples()
    regularizer = regularizer_on(model)
    assert num_hooks(model) == 1
    regularizer.close()
    regularizer.close()
    assert num_hooks(model) == 0
    grads = torch.autograd.grad(F.cross_entropy(model(inputs), labels), list(model.parameters()))
    with pytest.raises(ValueError, match="this GradRegularizer is closed"):
        regularizer(grads, inputs, labels)


def test_the_end_of_a_with_block_removes_the_hook() -> None:
    model = build("tanh")
    with regularizer_on(model):
        assert num_hooks(model) == 1
    assert num_hooks(model) == 0


def test_garbage_collection_removes_the_hook() -> None:
    model = build("tanh")
    regularizer = regularizer_on(model)
    assert num_hooks(model) == 1
    del regularizer
    gc.collect()
    assert num_hooks(model) == 0


@pytest.mark.parametrize("name", ["dropout", "batchnorm"])
def test_in_an_objective_it_is_the_penalty_bitwise(name: str) -> None:
    model, blocks = build(name), cut(*samples(), [20, 13])
    regularizer = regularizer_on(model)
    penalty = GradientPenalty(regularizer.optimizer, block_strength=0.5)
    results = [
        FullBatchObjective(model, F.cross_entropy, blocks, regularizer=one).evaluate() for one in (regularizer, penalty)
    ]
    assert torch.equal(*(vector(result.gradient) for result in results))
    assert torch.equal(*(result.penalty for result in results))
