"""Weights and inputs that are functions of names and places, so that two programs can agree on them."""

import math
import zlib

import torch
from torch import Tensor, nn


@torch.no_grad()
def fill_(module: nn.Module) -> None:
    """Set every floating-point entry of the state dict to its value."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(filling(name, tensor))


def filling(name: str, tensor: Tensor) -> Tensor:
    count = torch.arange(tensor.numel(), dtype=torch.float64)
    v = torch.sin(0.7 * count + zlib.crc32(name.encode()) % 1000).view(tensor.shape)
    last = name.rsplit(".", maxsplit=1)[-1]
    if last == "running_var":
        return 1 + 0.5 * v
    if last == "running_mean":
        return 0.1 * v
    if tensor.ndim <= 1:
        return 1 + 0.25 * v if last.endswith(("weight", "gain")) else 0.1 * v
    return v * math.sqrt(2 / tensor[0].numel())


def inputs(batch: int, channels: int, pixels: int) -> Tensor:
    """Images [batch, channels, pixels, pixels] in float64."""
    count = torch.arange(batch * channels * pixels * pixels, dtype=torch.float64)
    return torch.cos(0.37 * count).view(batch, channels, pixels, pixels)
