"""Hessian-vector products H v of the loss of one sub-batch, five ways.

t are the trainable parameters, g(t) is the gradient of the loss, H its Hessian, v a list of tensors shaped like t.
Parameters and buffers are restored bitwise after every evaluation away from t. v is given as a function, so that it can
be computed where it is needed and does not occupy memory during evaluations.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from fullbatch.objective.second_derivatives import (
    require_differentiable,
    require_right_second_derivatives,
    twice_differentiable,
)
from fullbatch.tensors import (
    add_,
    global_norm,
    in_places,
    parameters_at,
    preserved,
    products,
    scale_,
    scaled_sum,
    separate,
    trainable,
)
from fullbatch.typing import Tensors

Forward = Callable[[Tensor], Tensor]
Direction = Callable[[], Tensors]
"""Returns v."""


@dataclass(frozen=True)
class SubBatchLoss:
    """The loss of one sub-batch as a function of the parameters of ``model``.

    ``loss(forward)`` evaluates it with ``forward`` in the place of the model, repeating the sub-batch's dropout masks.
    For ``loss_scale`` see ``fullbatch.objective.arithmetic.Arithmetic``.
    """

    model: nn.Module
    loss: Callable[[Forward], Tensor]
    loss_scale: float = 1.0

    def gradient(self, create_graph: bool = False) -> list[Tensor]:
        """Return g at the current parameters; zeros for a parameter that the loss does not use."""
        with twice_differentiable() if create_graph else nullcontext():
            return gradient_of(self.loss(self.model), self.model, create_graph, self.loss_scale)


def gradient_of(loss: Tensor, model: nn.Module, create_graph: bool = False, loss_scale: float = 1.0) -> list[Tensor]:
    """Return the gradient of ``loss`` with respect to the trainable parameters, zeros where they are not used.

    Each has memory of its own, so that it can be changed in place. ``loss_scale`` as of ``SubBatchLoss``.
    """
    gradient = torch.autograd.grad(
        loss,
        trainable(model),
        None if loss_scale == 1.0 else torch.full_like(loss, loss_scale),  # an explicit 1 imports sympy (0.3 s)
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return products(separate(gradient), 1 / loss_scale)


def forward_differences(point: SubBatchLoss, gradient: Tensors, v: Direction, eps: float) -> list[Tensor]:
    """Return (g(t + h v) - g(t)) / h with h = eps / ||v||; error O(h). ``gradient`` is g(t)."""
    h = _step_size(v(), eps)
    product = _gradient_at(point, v, h)
    with torch.no_grad():
        add_(product, gradient, alpha=-1.0)
        scale_(product, 1 / h)
    return product


def central_differences(point: SubBatchLoss, gradient: Tensors, v: Direction, eps: float) -> list[Tensor]:
    """Return (g(t + h v/2) - g(t - h v/2)) / h with h = eps / ||v||; error O(h^2)."""
    h = _step_size(v(), eps)
    product = _gradient_at(point, v, h / 2)
    add_(product, _gradient_at(point, v, -h / 2), alpha=-1.0)
    scale_(product, 1 / h)
    return product


def reverse_over_reverse(point: SubBatchLoss, gradient: Tensors, v: Direction, eps: float = 0.0) -> list[Tensor]:
    """Return H v exactly by differentiating <g, v> (double backward); ``gradient`` must carry its graph."""
    require_right_second_derivatives(point.model)
    carried = [(g, x) for g, x in zip(gradient, v(), strict=True) if g.requires_grad]
    if not carried:
        raise ValueError("the gradients carry no graph: compute them with create_graph=True")
    outputs, directions = zip(*carried, strict=True)
    require_differentiable(point.model, outputs)
    with twice_differentiable():
        product = torch.autograd.grad(
            outputs,
            trainable(point.model),
            products([x.detach() for x in directions], point.loss_scale),  # g is the scaled gradient over the scale
            allow_unused=True,
            materialize_grads=True,
        )
    return products(product, 1 / point.loss_scale)


def forward_over_reverse(point: SubBatchLoss, gradient: Tensors, v: Direction, eps: float = 0.0) -> list[Tensor]:
    """Return H v exactly as the derivative of g along v, forward mode through the backward pass (Pearlmutter, 1994)."""
    require_right_second_derivatives(point.model)
    with twice_differentiable():
        if point.model not in _NEEDS_GRAPH:
            try:
                return _derivative_of_gradient(point, v(), create_graph=False)
            except NotImplementedError:
                # A fused backward pass (of group norm, SiLU, ...) without a derivative in forward mode. With a graph,
                # PyTorch uses one that is composed of differentiable operators.
                _NEEDS_GRAPH.add(point.model)
        return _derivative_of_gradient(point, v(), create_graph=True)


_NEEDS_GRAPH: "WeakSet[nn.Module]" = WeakSet()


def _derivative_of_gradient(point: SubBatchLoss, v: Tensors, create_graph: bool) -> list[Tensor]:
    model, parameters = point.model, trainable(point.model)
    with preserved(list(model.buffers())), forward_ad.dual_level(), torch.enable_grad(), warnings.catch_warnings():
        # PyTorch scripts its forward-mode formulas at their first use, with a deprecation warning
        warnings.filterwarnings("ignore", message="`torch.jit.script", category=FutureWarning)
        duals = [
            forward_ad.make_dual(parameter.detach().requires_grad_(), direction.detach().to(parameter.dtype))
            for parameter, direction in zip(parameters, v, strict=True)
        ]
        named = in_places(model, duals)
        loss = point.loss(lambda inputs: functional_call(model, named, (inputs,), tie_weights=False))
        gradient = torch.autograd.grad(
            loss * point.loss_scale, duals, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
        tangents = [forward_ad.unpack_dual(g).tangent for g in gradient]
    product = [
        torch.zeros_like(p) if tangent is None else tangent.detach()
        for p, tangent in zip(parameters, tangents, strict=True)
    ]
    return products(product, 1 / point.loss_scale)


@dataclass(frozen=True)
class Implementation:
    """One way to compute H v: the function, its cost beyond g(t) in gradient evaluations, and what it needs of g(t).

    An implementation that is not ``exact`` is a difference of gradients, which magnifies their rounding by ||v||/eps.
    """

    product: Callable[[SubBatchLoss, Tensors, Direction, float], list[Tensor]]
    evaluations: int = 1
    needs_graph: bool = False
    exact: bool = False


IMPLEMENTATIONS = {
    "forward-differences": Implementation(forward_differences),
    "finite_diff": Implementation(forward_differences),
    "forward-differences-legacy": Implementation(forward_differences),
    "central-differences": Implementation(central_differences, evaluations=2),
    "autograd": Implementation(reverse_over_reverse, needs_graph=True, exact=True),
    # the gradient of alpha/2 ||g||^2 + beta <g, gbar>: its backward pass starts with v, so it is the same computation
    "autograd-pen": Implementation(reverse_over_reverse, needs_graph=True, exact=True),
    "forward-over-reverse": Implementation(forward_over_reverse, exact=True),
}


def implementation_named(name: str) -> Implementation:
    """Look an implementation up, case-insensitively; ``ValueError`` lists the known ones."""
    if name.lower() == "complex-step":
        raise ValueError(
            "implementation=complex-step is refused: ReLU and cross-entropy are not holomorphic, so a complex step "
            "does not differentiate them; the exact alternative is forward-over-reverse"
        )
    if name.lower() not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={name} is unknown; known: {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[name.lower()]


def _step_size(v: Tensors, eps: float) -> Tensor:
    norm = global_norm(v)
    # for v = 0 any finite h works, since both gradients are equal; a test for zero would synchronize with the device
    return eps / norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)


def _gradient_at(point: SubBatchLoss, v: Direction, h: Tensor) -> list[Tensor]:
    with torch.enable_grad(), parameters_at(point.model, scaled_sum(trainable(point.model), v(), h)):
        return point.gradient()
