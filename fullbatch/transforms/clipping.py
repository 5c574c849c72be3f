"""Clipping by the global norm."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fullbatch.tensors import global_norm, scale_
from fullbatch.typing import Tensors


@torch.no_grad()
def clip_by_norm_(gradients: Tensors, max_norm: float | Tensor, order: float = 2.0) -> tuple[Tensor, Tensor]:
    """Multiply by c / (norm + 1e-6) in place if the norm exceeds c = ``max_norm``; ``order`` is 2 or ``math.inf``.

    Returns the norm before clipping, and 1.0 or 0.0 for clipped or not. Both are scalar tensors; nothing waits for the
    device.
    """
    norm = global_norm(gradients, order)
    exceeds = norm > max_norm
    scale_(gradients, torch.where(exceeds, max_norm / (norm + 1e-6), 1.0))
    return norm, exceeds.to(norm.dtype)


@dataclass(frozen=True)
class ClipByNorm:
    """``clip_by_norm_`` as a gradient transformation."""

    max_norm: float
    order: float = 2.0

    def __call__(self, gradients: Tensors, parameters: Tensors) -> None:
        """Clip in place."""
        clip_by_norm_(gradients, self.max_norm, self.order)
