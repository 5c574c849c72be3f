"""Losses times a power of two: the same bits where nothing is too small or large, and what float16 would lose."""

from collections.abc import Callable

import pytest
import torch
from cases import build, samples
from references import vector
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.landscape.any_module import loss_landscape
from fullbatch.landscape.grid import Axis
from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gauss_newton import gauss_newton_product
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.objective.sub_batch import SubBatchObjective
from fullbatch.tensors import trainable
from fullbatch.typing import Block

TINY = 2.0**-20
"""What losses are multiplied by, so that their gradients are below the numbers of float16."""
SCALES = (1.0, 2.0**10, 1 / TINY)


def tiny_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return TINY * F.cross_entropy(outputs, labels)


def block() -> Block:
    inputs, labels = samples()
    return Block(inputs.float(), labels, 0)


def direction(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn_like(parameter) for parameter in trainable(model)]


Computation = Callable[..., Tensor]


def arithmetic(mixed_precision: bool | torch.dtype = False, loss_scale: float = 1.0) -> Arithmetic:
    return Arithmetic(autocast=mixed_precision, loss_scale=loss_scale)


def gradient(model: nn.Module, **how: object) -> Tensor:
    return vector(FullBatchObjective(model, tiny_loss, [block()], arithmetic=arithmetic(**how)).evaluate().gradient)


def plain_gradient(model: nn.Module, **how: object) -> Tensor:
    objective = FullBatchObjective(model, tiny_loss, [block()], batch_clip=1.0, arithmetic=arithmetic(**how))
    return vector(objective.plain().evaluate().gradient)


def hessian_product(implementation: str) -> Computation:
    def compute(model: nn.Module, **how: object) -> Tensor:
        objective = FullBatchObjective(model, tiny_loss, [block()], arithmetic=arithmetic(**how))
        return vector(objective.hessian_product(direction(model), implementation, eps=0.5))

    return compute


def regularization(implementation: str) -> Computation:
    """What the regularizer adds to a gradient that is not of its own loss, so that v is not tiny."""

    def compute(model: nn.Module, **how: object) -> Tensor:
        optimizer = torch.optim.SGD(model.parameters(), lr=4.0)
        regularizer = GradRegularizer(
            model, optimizer, tiny_loss, 2, 0.0, 1.0, 0.5, implementation=implementation, **how
        )
        inputs, labels, _ = block()
        objective = SubBatchObjective(model, tiny_loss, arithmetic=arithmetic(**how))
        grads = objective.point(block()).gradient(create_graph=regularizer.create_graph)
        before = vector(grads)
        return vector(regularizer(grads, inputs, labels, direction(model))) - before

    return compute


def gauss_newton(model: nn.Module, **how: object) -> Tensor:
    objective = SubBatchObjective(model, tiny_loss, arithmetic=arithmetic(**how))
    return vector(gauss_newton_product(objective.point(block()), direction(model)))


IMPLEMENTATIONS = ("forward-differences", "central-differences", "autograd", "forward-over-reverse")
WAYS: dict[str, Computation] = {
    "gradient": gradient,
    "plain gradient": plain_gradient,
    "Gauss-Newton product": gauss_newton,
    **{f"Hessian product, {name}": hessian_product(name) for name in IMPLEMENTATIONS},
    **{f"regularizer, {name}": regularization(name) for name in IMPLEMENTATIONS},
}


@pytest.mark.parametrize("way", WAYS)
def test_in_float32_a_power_of_two_changes_no_bit(way: str) -> None:
    first, *others = (WAYS[way](build("tanh").float(), loss_scale=scale) for scale in SCALES)
    assert first.any()
    for other in others:
        assert torch.equal(first, other)


@pytest.mark.parametrize("way", WAYS)
def test_in_float16_what_would_be_zero_is_kept(way: str) -> None:
    model = build("tanh").float()
    exact = WAYS[way](model)
    lost, kept = (WAYS[way](model, mixed_precision=torch.float16, loss_scale=scale) for scale in (1.0, 1 / TINY))
    assert (lost - exact).norm() > 0.1 * exact.norm()
    assert (kept - exact).norm() < 0.01 * exact.norm()


def test_too_large_a_scale_is_seen_in_the_gradient() -> None:
    model = build("tanh").float()
    for scale, finite in ((2.0**20, True), (2.0**60, False)):
        assert bool(gradient(model, mixed_precision=torch.float16, loss_scale=scale).isfinite().all()) == finite


def test_the_penalty_in_a_landscape_has_the_regularizers_scale() -> None:
    model = build("tanh").float()

    def penalty(**how: object) -> float:
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0**40)
        regularizer = GradRegularizer(model, optimizer, tiny_loss, block_strength=1.0, **how)
        low = how.get("mixed_precision", False)
        data, one = [block()[:2]], Axis(0, 0, 1)
        surface = loss_landscape(model, tiny_loss, data, x=one, regularizer=regularizer, mixed_precision=low)
        return float(surface.full_loss[0, 0] - surface.loss[0, 0])

    assert penalty(mixed_precision=torch.float16, loss_scale=1 / TINY) == pytest.approx(penalty(), rel=0.02)
    assert penalty(mixed_precision=torch.float16) != pytest.approx(penalty(), rel=0.2)
