"""Gradient of a penalty that pulls the norm of the parameters towards a value."""

from dataclasses import dataclass

import torch

from fullbatch.tensors import add_, global_norm, scaled
from fullbatch.typing import Tensors


@dataclass(frozen=True)
class NormBias:
    """With d = ||t||^2 - bias^2: norm_type 2 adds 2 s d t, the gradient of s/2 d^2; norm_type 1 adds 2 s sign(d) t.

    The latter is the gradient of s |d|; s = ``strength``, t are the parameters.
    """

    strength: float
    norm_type: int = 1
    bias: float = 0.0

    def __post_init__(self) -> None:
        if self.norm_type not in (1, 2):
            raise ValueError(f"norm_type={self.norm_type}: accepted: 1, 2")

    @torch.no_grad()
    def __call__(self, gradients: Tensors, parameters: Tensors) -> None:
        """Add the gradient of the penalty in place."""
        distance = global_norm(parameters).square() - self.bias**2
        slope = distance if self.norm_type == 2 else distance.sign()
        add_(gradients, scaled(parameters, 2 * self.strength * slope))
