"""Softmax regression."""

from torch import nn


def build_linear(*, channels: int, classes: int, pixels: int) -> nn.Module:
    """Return one linear layer from the whole image [B, C, H, W], flattened, to outputs [B, classes]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * pixels * pixels, classes))
