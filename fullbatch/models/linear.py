"""Softmax regression."""

from torch import nn


def build_linear(*, channels: int, classes: int, pixels: int) -> nn.Module:
    """Build a linear layer that maps flattened images [B, C, H, W] to outputs [B, classes]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * pixels * pixels, classes))
