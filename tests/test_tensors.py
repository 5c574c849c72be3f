"""Lists of tensors behave like one vector; context managers restore what they change."""

import math

import pytest
import torch
from cases import build, samples
from references import assert_no_trace, trace_of, vector
from torch import Tensor, nn

from fullbatch import tensors
from fullbatch.tensors import parameters_at, preserved


def some(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(3, 4), (5,), ()]]


@pytest.mark.parametrize("order", [2.0, math.inf])
def test_norm(order: float) -> None:
    torch.testing.assert_close(tensors.global_norm(some(), order), torch.linalg.vector_norm(vector(some()), order))


def test_algebra() -> None:
    x, y = some(), some(1)
    torch.testing.assert_close(tensors.dot(x, y), vector(x) @ vector(y))
    torch.testing.assert_close(vector(tensors.scaled(x, 2.5)), 2.5 * vector(x))
    torch.testing.assert_close(vector(tensors.scaled_sum(x, y, -0.5)), vector(x) - 0.5 * vector(y))
    tensors.add_(x, y, alpha=3.0)
    torch.testing.assert_close(vector(x), vector(some()) + 3 * vector(y))
    tensors.lerp_(x, y, 0.25)
    torch.testing.assert_close(vector(x), 0.75 * (vector(some()) + 3 * vector(y)) + 0.25 * vector(y))
    tensors.scale_(x, torch.tensor(0.0, dtype=torch.float64))
    assert not vector(x).any()
    tensors.copy_(x, y)
    assert torch.equal(vector(x), vector(y))


def test_accumulators_are_at_least_as_precise_as_the_summands() -> None:
    low, high = torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float64)
    assert [z.dtype for z in tensors.zeros_like([low, high], torch.float32)] == [torch.float32, torch.float64]
    assert [z.dtype for z in tensors.zeros_like([low, high])] == [torch.bfloat16, torch.float64]


def test_flatten_and_back() -> None:
    flat = tensors.flatten(some())
    assert flat.shape == (18,)
    for piece, original in zip(tensors.unflatten(flat, some()), some(), strict=True):
        assert torch.equal(piece, original)


@pytest.mark.parametrize("name", ["dropout", "batchnorm"])
def test_parameters_at_sets_the_parameters_and_restores_the_state(name: str) -> None:
    model = build(name)
    before = trace_of(model)
    values = [torch.ones_like(p) for p in model.parameters()]
    with parameters_at(model, values):
        assert all(p.eq(1).all() for p in model.parameters())
        model(samples()[0])
    assert_no_trace(model, before)


def test_autocast_around_parameters_at_casts_the_current_parameters() -> None:
    model, inputs = build("linear").float(), samples()[0].float()
    with torch.autocast("cpu"):
        here, elsewhere = model(inputs), [p + 1 for p in model.parameters()]
        with parameters_at(model, elsewhere):
            there = model(inputs)
        assert torch.equal(model(inputs), here)
    with parameters_at(model, elsewhere), torch.autocast("cpu"):
        assert torch.equal(model(inputs), there)
    assert not torch.equal(here, there)


def test_parameters_are_restored_after_an_error() -> None:
    model = build("batchnorm")
    before = trace_of(model)
    with pytest.raises(KeyError), parameters_at(model, [torch.ones_like(p) for p in model.parameters()]):
        raise KeyError
    assert_no_trace(model, before)


def test_preserved_restores_integer_and_not_a_number_entries_bitwise() -> None:
    values = [torch.tensor([1, 2]), torch.tensor([math.nan, -0.0])]
    with preserved(values):
        for value in values:
            value.zero_()
    assert values[0].tolist() == [1, 2]
    assert values[1].view(torch.int32).tolist() == torch.tensor([math.nan, -0.0]).view(torch.int32).tolist()


def test_only_trainable_parameters_count() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [p.shape for p in tensors.trainable(model)] == [(2, 2)]
    assert tensors.device_of(nn.ReLU()) == torch.device("cpu")
