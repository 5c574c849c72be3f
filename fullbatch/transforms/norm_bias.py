"""A bias of the parameter norm towards a value."""

from dataclasses import dataclass

import torch

from fullbatch.tensors import add_, global_norm, scaled
from fullbatch.typing import Tensors


@dataclass(frozen=True)
class NormBias:
    """With d = ||t||^2 - bias^2: norm_type 2 adds 2 s d t, the gradient of s/2 d^2; norm_type 1 adds 2 s sign(d) t."""

    strength: float
    norm_type: int = 1
    bias: float = 0.0

    def __post_init__(self) -> None:
        if self.norm_type not in (1, 2):
            raise ValueError(f"norm_type={self.norm_type}: accepted are 1 and 2")

    @torch.no_grad()
    def __call__(self, gradients: Tensors, parameters: Tensors) -> None:
        """Add the bias' gradient in place."""
        distance = global_norm(parameters).square() - self.bias**2
        slope = distance if self.norm_type == 2 else distance.sign()
        add_(gradients, scaled(parameters, 2 * self.strength * slope))
