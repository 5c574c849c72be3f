"""Gaussian noise on the gradient, drawn from the global generator, which the training step seeds."""

from dataclasses import dataclass

import torch

from fullbatch.typing import Tensors


@dataclass(frozen=True)
class AdditiveNoise:
    """g <- g + s z with z standard normal and s = ``strength``."""

    strength: float

    @torch.no_grad()
    def __call__(self, gradients: Tensors, parameters: Tensors) -> None:
        """Add noise in place."""
        for gradient in gradients:
            gradient.add_(torch.randn_like(gradient), alpha=self.strength)


@dataclass(frozen=True)
class MultiplicativeNoise:
    """g <- g (1 + s z), entry by entry, with z standard normal and s = ``strength``."""

    strength: float

    @torch.no_grad()
    def __call__(self, gradients: Tensors, parameters: Tensors) -> None:
        """Multiply by the noise in place."""
        for gradient in gradients:
            gradient.mul_(1 + self.strength * torch.randn_like(gradient))
