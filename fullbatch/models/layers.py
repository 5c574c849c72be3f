"""Convolutions, activations and normalizations, selected by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Convolution = Callable[..., nn.Conv2d]
"""(in_channels, out_channels, kernel_size, *, stride, padding, bias) -> layer."""
Normalization = Callable[[int], nn.Module]
"""channels -> layer."""
Layer = TypeVar("Layer", bound=Callable[..., Any])

GHOST_BATCH = 64


class StandardizedConv2d(nn.Conv2d):
    """A convolution with standardized filters (w - mean(w)) / sqrt(var(w) + 1e-5) (Qiao et al., 2019).

    Mean and variance (without Bessel's correction) are those of the entries of a filter.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the convolution of [B, C, H, W]."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return self._conv_forward(inputs, (self.weight - mean) * torch.rsqrt(variance + 1e-5), self.bias)


class SequentialGhostNorm(nn.BatchNorm2d):
    """Batch norm over consecutive chunks of 64 samples (ghost batch norm; Hoffer et al., 2017).

    Running statistics are updated once per chunk, so they do not depend on the number of chunks in a batch.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalize [B, C, H, W]."""
        return torch.cat([super(SequentialGhostNorm, self).forward(chunk) for chunk in inputs.split(GHOST_BATCH)])


class SkipInit(nn.Module):
    """x -> 0.2 s x with a learned scalar s, initially 0, so that a residual branch is initially zero.

    De & Smith, Batch normalization biases residual blocks towards the identity function (2020).
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale [B, C, H, W]."""
        return 0.2 * self.gain * inputs


class SubsampledMean(nn.Module):
    """Average pooling with windows of stride x stride; those that extend past the border average the pixels inside."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        """Pool [B, C, H, W]."""
        return F.avg_pool2d(inputs, self.stride, self.stride, ceil_mode=True, count_include_pad=False)


@dataclass(frozen=True)
class LayerKinds:
    """The kinds of layers in a network; without a normalization, convolutions have biases."""

    convolution: Convolution
    activation: Callable[[], nn.Module]
    normalization: Normalization | None

    def conv(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        """Return a convolution that keeps the size of the image, up to the stride."""
        bias = self.normalization is None
        return self.convolution(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=bias)

    def norm(self, channels: int) -> nn.Module:
        """Return a normalization, or the identity."""
        return nn.Identity() if self.normalization is None else self.normalization(channels)


def convolution_named(name: str) -> Convolution:
    """Return a convolution: Standard, circular, reflect, replicate (padding modes) or standardized (filters)."""
    return _lookup("convolution", name, _CONVOLUTIONS)


def activation_named(name: str) -> Callable[[], nn.Module]:
    """Return an elementwise activation of ``torch.nn``."""
    elementwise = {key: getattr(nn, key) for key in nn.modules.activation.__all__ if key not in _NOT_ELEMENTWISE}
    return _lookup("nonlin_fn", name, elementwise)


def normalization_named(name: str) -> Normalization:
    """Return a normalization of ``torch.nn``, or one of the following.

    ``groupnorm1``, ``groupnorm8``, ``groupnorm32``: so many groups, at most one per channel; ``groupnorm4th``: groups
    of four channels; ``sequentialghostnorm``: see ``SequentialGhostNorm``.
    """
    return _lookup("normalization", name, _NORMALIZATIONS)


def one_of(option: str, name: str, accepted: tuple[str, ...]) -> str:
    """Return ``name`` in lower case; ``ValueError`` with the option and the accepted names if it is not one of them."""
    if name.lower() not in map(str.lower, accepted):
        raise ValueError(f"{option}={name}: unknown; known: {', '.join(accepted)}")
    return name.lower()


def check_pixels(pixels: int, smallest: int, stem: str, convolution: str, normalization: str) -> None:
    """Raise ``ValueError`` with the option that does not fit images of ``pixels``.

    ``smallest`` is the side of the feature maps in the last layers that convolve and normalize.
    """
    if smallest < 1:
        raise ValueError(f"images of {pixels} pixels shrink to nothing; this model needs larger ones")
    if convolution.lower() == "reflect" and smallest < 2:
        raise ValueError(f"convolution=reflect: images of {pixels} pixels shrink to one pixel, which has no reflection")
    if normalization.lower() == "instancenorm2d" and smallest < 2:
        raise ValueError(
            f"normalization=InstanceNorm2d: images of {pixels} pixels shrink to one pixel, which has no variance"
        )
    if convolution.lower() == "circular" and stem.lower() == "standard" and pixels < 3:
        raise ValueError(f"convolution=circular: images of {pixels} pixels are smaller than the stem's padding of 3")


def _group_norm(channels: int, *, groups: int | None) -> nn.GroupNorm:
    """Return a group norm with at most ``groups`` groups; with None, groups of four channels."""
    groups = max(channels // 4, 1) if groups is None else min(groups, channels)
    if channels % groups != 0:
        raise ValueError(
            f"{groups} groups do not divide {channels} channels; choose another model.width or normalization"
        )
    return nn.GroupNorm(groups, channels)


_CONVOLUTIONS: dict[str, Convolution] = {
    "Standard": nn.Conv2d,
    "circular": partial(nn.Conv2d, padding_mode="circular"),
    "reflect": partial(nn.Conv2d, padding_mode="reflect"),
    "replicate": partial(nn.Conv2d, padding_mode="replicate"),
    "standardized": StandardizedConv2d,
}
_NORMALIZATIONS: dict[str, Normalization] = {
    "BatchNorm2d": nn.BatchNorm2d,
    "InstanceNorm2d": nn.InstanceNorm2d,
    "SyncBatchNorm": nn.SyncBatchNorm,
    "Identity": nn.Identity,
    "groupnorm1": partial(_group_norm, groups=1),
    "groupnorm8": partial(_group_norm, groups=8),
    "groupnorm32": partial(_group_norm, groups=32),
    "groupnorm4th": partial(_group_norm, groups=None),
    "sequentialghostnorm": SequentialGhostNorm,
}
_NOT_ELEMENTWISE = {"GLU", "LogSoftmax", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "Threshold"}


def _lookup(option: str, name: str, table: Mapping[str, Layer]) -> Layer:
    by_lower_name = {key.lower(): value for key, value in table.items()}
    return by_lower_name[one_of(option, name, tuple(table))]
