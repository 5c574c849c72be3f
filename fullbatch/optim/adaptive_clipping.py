"""Gradient descent with gradients clipped to the norms of the last steps."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fullbatch.optim.closure import gradients_of
from fullbatch.optim.descent import Descent
from fullbatch.tensors import global_norm
from fullbatch.transforms.clipping import clip_by_norm_

NORMS = "norms"
"""Key of the last norms in the optimizer's state."""


class ClippedDescent(Descent):
    """Momentum descent that clips a gradient to the largest norm of the last ``interval`` steps.

    With n_k the norm of the gradient of step k before this clip and c = max(n_{k-1}, ..., n_{k-interval}),
    g <- g c / (n_k + 1e-6) where n_k > c. The first gradient is not clipped. Only gradients are scaled, and a step is
    always taken. Weight decay and momentum come after.

    Args:
        params: parameters or groups of them.
        lr, momentum, dampening, weight_decay, nesterov: as in ``Descent``.
        interval: number of norms.
        norm_type: 2 or ``math.inf``.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, *, interval: int = 10, norm_type: float = 2.0, **options: Any
    ) -> None:
        super().__init__(params, lr, **options)
        self.interval, self.norm_type = interval, norm_type

    def _gradients(self) -> list[Tensor]:
        gradients = gradients_of(self)
        norm = global_norm(gradients, self.norm_type)
        last: Tensor = self.state.get(NORMS, norm.new_zeros(0)).to(norm.device)  # type: ignore[call-overload]
        if len(last):
            clip_by_norm_(gradients, last.max(), self.norm_type)
        self.state[NORMS] = torch.cat([last, norm[None]])[-self.interval :]  # type: ignore[index]
        return gradients
