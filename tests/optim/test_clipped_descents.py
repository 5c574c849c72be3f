"""Adaptive clipping follows its formula unit by unit; clipping to the norms of the last gradients."""

import math

import pytest
import torch
from optimization import Counted, minimize, rosenbrock
from torch import Tensor, nn

from fullbatch.optim.adaptive_clipping import ClippedDescent
from fullbatch.optim.agc import AdaptivelyClippedDescent, clip_units_, unit_norms
from fullbatch.optim.descent import Descent

SHAPES = [(4, 3, 2, 2), (5, 7), (6,), ()]


def tensors(seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def clipped_by_hand(gradient: Tensor, weights: Tensor, clipping: float, eps: float) -> Tensor:
    if gradient.ndim > 1:
        pairs = zip(gradient, weights, strict=True)
        return torch.stack([clipped_by_hand(g.reshape(-1), w.reshape(-1), clipping, eps).view_as(g) for g, w in pairs])
    norm, longest = float(gradient.norm()), clipping * max(float(weights.norm()), eps)
    return gradient * longest / max(norm, 1e-6) if norm > longest else gradient


@pytest.mark.parametrize("scale", [1e-3, 0.02, 1.0])
def test_every_unit_is_clipped_by_the_formula(scale: float) -> None:
    gradients, weights = tensors(0, scale), tensors(1)
    weights[0][1] = 0  # a unit whose weights are 0 still moves
    expected = [clipped_by_hand(g, w, 0.01, 1e-3) for g, w in zip(gradients, weights, strict=True)]
    clip_units_(gradients, weights, 0.01, 1e-3)
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=0)


def test_adaptive_clipping_agrees_with_timm() -> None:
    agc = pytest.importorskip("timm.utils.agc")
    gradients, weights = (t[:2] for t in (tensors(0), tensors(1)))
    parameters = [nn.Parameter(w) for w in weights]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    agc.adaptive_clip_grad(parameters, clip_factor=0.01, eps=1e-3)
    clip_units_(gradients, weights, 0.01, 1e-3)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-6, atol=1e-6)


def test_units_are_outputs() -> None:
    assert [tuple(unit_norms(t).shape) for t in tensors(0)] == [(4, 1, 1, 1), (5, 1), (), ()]


def test_agc_is_descent_along_clipped_gradients_and_exempts_groups() -> None:
    parameters = [nn.Parameter(t) for t in tensors(1)]
    copies = [p.detach().clone() for p in parameters]
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "clipping": None}]
    optimizer = AdaptivelyClippedDescent(groups, 0.5, momentum=0.9, nesterov=True, weight_decay=0.01, clipping=0.02)
    momenta = [torch.zeros_like(p) for p in copies]
    for step in range(4):
        gradients = tensors(10 + step)

        def closure(gradients: list[Tensor] = gradients) -> Tensor:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            return torch.zeros(())

        optimizer.step(closure)
        for i, (copy, gradient) in enumerate(zip(copies, gradients, strict=True)):
            g = (clipped_by_hand(gradient, copy, 0.02, 1e-3) if i < 2 else gradient) + 0.01 * copy
            momenta[i] = 0.9 * momenta[i] + g
            copies[i] = copy - 0.5 * (g + 0.9 * momenta[i])
    torch.testing.assert_close([parameter.detach() for parameter in parameters], copies, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("order", [2.0, math.inf])
def test_gradients_are_clipped_to_the_largest_of_the_last_norms(order: float) -> None:
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = ClippedDescent([parameter], 1.0, interval=2, norm_type=order)
    lengths = [3.0, 5.0, 1.0, 2.0, 9.0, 4.0, 9.5]
    # the larger of the two before:  3    5    5    2    9    9
    allowed = [3.0, 3.0, 1.0, 2.0, 2.0, 4.0, 9.0]
    for length, expected in zip(lengths, allowed, strict=True):
        before = parameter.detach().clone()

        def closure(length: float = length) -> Tensor:
            parameter.grad = torch.tensor([0.0, length], dtype=torch.float64)
            return torch.zeros(())

        optimizer.step(closure)
        moved = (before - parameter.detach())[1]
        assert float(moved) == pytest.approx(expected, rel=1e-6)


def test_without_a_growing_gradient_clipped_descent_is_descent() -> None:
    function, start = (lambda x: x.square().sum() / 2), torch.tensor([3.0, -4.0], dtype=torch.float64)
    ours = minimize(function, start, lambda p: ClippedDescent(p, 0.1), 20)[0]
    assert torch.equal(ours, minimize(function, start, lambda p: Descent(p, 0.1), 20)[0])


def test_parameters_are_never_scaled() -> None:
    """At learning rate 0 nothing changes, however large the gradient is."""
    parameter = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    optimizer = ClippedDescent([parameter], 0.1, interval=1)
    closure = Counted(rosenbrock, parameter, optimizer)
    optimizer.step(closure)
    before = parameter.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.state["norms"] = torch.tensor([1e-9], dtype=torch.float64)  # type: ignore[index]
    optimizer.step(closure)
    assert torch.equal(parameter, before)
