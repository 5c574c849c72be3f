"""Gradient transformations follow their formulas, and a chain is their composition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import vector
from torch import Tensor

from fullbatch.transforms.chain import GradientTransform, chain
from fullbatch.transforms.clipping import ClipByNorm, clip_by_norm_
from fullbatch.transforms.noise import AdditiveNoise, MultiplicativeNoise
from fullbatch.transforms.norm_bias import NormBias

SHAPES = [(3, 4), (5,), (2, 3, 2, 1)]


def tensors(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def transformed(transform: GradientTransform, gradients: list[Tensor], parameters: list[Tensor]) -> Tensor:
    copies = [g.clone() for g in gradients]
    transform(copies, parameters)
    return vector(copies)


@given(limit=st.floats(0.01, 20), order=st.sampled_from([2.0, math.inf]), scale=st.floats(0.01, 100))
@settings(max_examples=50, deadline=None)
def test_clipping_shortens_and_keeps_the_direction(limit: float, order: float, scale: float) -> None:
    gradients = [scale * g for g in tensors()]
    before = vector(gradients)
    norm = float(torch.linalg.vector_norm(before, order))
    after = transformed(ClipByNorm(limit, order), gradients, gradients)
    if norm <= limit:
        assert torch.equal(after, before)
    else:
        torch.testing.assert_close(after, before * limit / (norm + 1e-6), rtol=1e-12, atol=0)
        assert torch.linalg.vector_norm(after, order) <= limit


def test_clipping_returns_the_norm_and_whether_it_clipped() -> None:
    for limit, clipped in ((1e3, 0.0), (1e-3, 1.0)):
        norm, flag = clip_by_norm_(gradients := tensors(), limit)
        assert float(norm) == pytest.approx(float(vector(tensors()).norm()))
        assert float(flag) == clipped
        assert bool(clipped) != torch.equal(vector(gradients), vector(tensors()))


@pytest.mark.parametrize("norm_type", [1, 2])
def test_norm_bias_is_the_gradient_of_its_penalty(norm_type: int) -> None:
    for bias in (0.0, 1.0, 30.0):
        parameters, gradients = [p.requires_grad_() for p in tensors()], tensors(1)
        distance = sum(p.square().sum() for p in parameters) - bias**2
        penalty = 0.3 * distance.abs() if norm_type == 1 else 0.3 / 2 * distance.square()
        expected = vector(torch.autograd.grad(penalty, parameters))
        added = transformed(NormBias(0.3, norm_type, bias), gradients, parameters) - vector(gradients)
        torch.testing.assert_close(added, expected, rtol=1e-10, atol=1e-12)


def test_norm_bias_refuses_other_norms() -> None:
    with pytest.raises(ValueError, match="norm_type=3: accepted: 1, 2"):
        NormBias(0.1, 3)


def test_noise_has_its_distribution() -> None:
    gradients = [torch.full((200, 200), 3.0), torch.full((1000,), 3.0)]
    torch.manual_seed(3)
    additive = transformed(AdditiveNoise(0.5), gradients, gradients)
    assert float(additive.mean()) == pytest.approx(3, abs=0.01)
    assert float(additive.std()) == pytest.approx(0.5, rel=0.02)
    multiplicative = transformed(MultiplicativeNoise(0.5), gradients, gradients)
    assert float(multiplicative.mean()) == pytest.approx(3, abs=0.03)
    assert float(multiplicative.std()) == pytest.approx(1.5, rel=0.02)
    zeros = [torch.zeros(5)]
    assert not transformed(MultiplicativeNoise(0.5), zeros, zeros).any()


def test_a_chain_is_the_composition_and_returns_the_norms() -> None:
    parameters, gradients = tensors(1), tensors()
    stages = [NormBias(0.3, 1, 1.0), ClipByNorm(1.0), AdditiveNoise(0.1), MultiplicativeNoise(0.2)]
    expected = [g.clone() for g in gradients]
    torch.manual_seed(7)
    for stage in stages:
        stage(expected, parameters)
    torch.manual_seed(7)
    statistics = chain(stages, gradients, parameters)
    assert torch.equal(vector(gradients), vector(expected))
    torch.testing.assert_close(statistics["full_grad_norm"], vector(tensors()).norm())
    torch.testing.assert_close(statistics["update_norm"], vector(expected).norm())


def test_an_empty_chain_is_the_identity() -> None:
    statistics = chain([], gradients := tensors(), tensors(1))
    assert torch.equal(vector(gradients), vector(tensors()))
    assert torch.equal(statistics["full_grad_norm"], statistics["update_norm"])
