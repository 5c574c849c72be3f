"""Gradient descent with adaptive gradient clipping."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fullbatch.optim.closure import by_group, gradients_of
from fullbatch.optim.descent import Descent
from fullbatch.tensors import scale_each_
from fullbatch.typing import Tensors


class AdaptivelyClippedDescent(Descent):
    """Momentum descent along gradients clipped unit by unit (Brock, De, Smith & Simonyan, ICML 2021).

    A unit consists of the weights of one output: a row of a matrix, a filter [in, h, w] of a convolution. A vector or a
    scalar is one unit. With W a unit's weights and G their gradient, where ||G|| > c max(||W||, eps)

        G <- G c max(||W||, eps) / max(||G||, 1e-6),

    before weight decay and momentum.

    Args:
        params: parameters or groups of them.
        lr, momentum, dampening, weight_decay, nesterov: as in ``Descent``.
        clipping: c; groups with ``clipping`` None are not clipped.
        eps: lower bound of ||W||, so that weights of zero can move.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, *, clipping: float | None = 0.01, eps: float = 1e-3, **options: Any
    ) -> None:
        groups = [group if isinstance(group, dict) else {"params": [group]} for group in params]
        super().__init__([{"clipping": clipping, **group} for group in groups], lr, **options)
        self.eps = eps

    def _gradients(self) -> list[Tensor]:
        gradients = gradients_of(self)
        for group, own in by_group(self, gradients):
            if group["clipping"] is not None:
                clip_units_(own, group["params"], group["clipping"], self.eps)
        return gradients


@torch.no_grad()
def clip_units_(gradients: Tensors, parameters: Tensors, clipping: float, eps: float = 1e-3) -> None:
    """Clip the gradient of each unit in place; see ``AdaptivelyClippedDescent``."""
    factors = []
    for gradient, parameter in zip(gradients, parameters, strict=True):
        norm, max_norm = unit_norms(gradient), clipping * unit_norms(parameter).clamp(min=eps)
        factors.append(torch.where(norm > max_norm, max_norm / norm.clamp(min=1e-6), 1.0))
    scale_each_(gradients, factors)


def unit_norms(tensor: Tensor) -> Tensor:
    """Return the 2-norm of each unit: shape [out, 1, ...] for [out, ...], a scalar for vectors and scalars."""
    if tensor.ndim <= 1:
        return torch.linalg.vector_norm(tensor)
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)
