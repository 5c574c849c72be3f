"""Convolutions, non-linearities and normalizations by name."""

from collections.abc import Callable, Mapping
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
    """A convolution with each filter w standardized: (w - mean(w)) / sqrt(var(w) + 1e-5) (Qiao et al., 2019).

    The variance is the population's over the filter's entries.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the convolution of [B, C, H, W]."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return self._conv_forward(inputs, (self.weight - mean) * torch.rsqrt(variance + 1e-5), self.bias)


class SequentialGhostNorm(nn.BatchNorm2d):
    """Batch norm of chunks of 64 samples, one after the other (ghost batch norm; Hoffer et al., 2017).

    Running statistics move once per chunk, so they do not depend on how many chunks come at once.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalize [B, C, H, W]."""
        return torch.cat([super(SequentialGhostNorm, self).forward(chunk) for chunk in inputs.split(GHOST_BATCH)])


class SkipInit(nn.Module):
    """x -> 0.2 s x with a learned scalar s that starts at 0, so that a residual branch starts at nothing.

    De & Smith, Batch normalization biases residual blocks towards the identity function (2020).
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale [B, C, H, W]."""
        return 0.2 * self.gain * inputs


class SubsampledMean(nn.Module):
    """Average pooling by the stride: windows of stride x stride, those at the rim over what is there."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        """Pool [B, C, H, W]."""
        return F.avg_pool2d(inputs, self.stride, self.stride, ceil_mode=True, count_include_pad=False)


def convolution_named(name: str) -> Convolution:
    """Return the convolution: Standard, circular, reflect, replicate (kinds of padding) or standardized (weights)."""
    return _lookup("convolution", name, _CONVOLUTIONS)


def activation_named(name: str) -> Callable[[], nn.Module]:
    """Return an elementwise activation of ``torch.nn`` by its name."""
    elementwise = {key: getattr(nn, key) for key in nn.modules.activation.__all__ if key not in _NOT_ELEMENTWISE}
    return _lookup("nonlin_fn", name, elementwise)


def normalization_named(name: str) -> Normalization:
    """Return a normalization: of ``torch.nn`` by its name, or one of ours.

    ``groupnorm1``, ``groupnorm8``, ``groupnorm32``: that many groups, at most one a channel; ``groupnorm4th``: four
    channels a group; ``sequentialghostnorm``.
    """
    return _lookup("normalization", name, _NORMALIZATIONS)


def one_of(option: str, name: str, known: tuple[str, ...]) -> str:
    """Return the name in lower case; ``ValueError`` names the option and lists what is known."""
    if name.lower() not in map(str.lower, known):
        raise ValueError(f"{option}={name}: unknown; known: {', '.join(known)}")
    return name.lower()


def refuse_small_images(pixels: int, smallest: int, convolution: str, normalization: str) -> None:
    """Name the option that does not fit, before a layer of PyTorch complains of a shape in the middle of a step.

    ``smallest`` is the side to which images of ``pixels`` shrink in the last layers that convolve and normalize.
    """
    if smallest < 1:
        raise ValueError(f"images of {pixels} pixels shrink to nothing; this model needs larger ones")
    if convolution.lower() == "reflect" and smallest < 2:
        raise ValueError(f"convolution=reflect: images of {pixels} pixels shrink to one, which has nothing to reflect")
    if normalization.lower() == "instancenorm2d" and smallest < 2:
        raise ValueError(
            f"normalization=InstanceNorm2d: images of {pixels} pixels shrink to one, which has no variance"
        )


def refuse_wide_padding(pixels: int, stem: str, convolution: str) -> None:
    """Refuse images that cannot be wrapped around the 7x7 convolution of the stem ``standard``."""
    if convolution.lower() == "circular" and stem.lower() == "standard" and pixels < 3:
        raise ValueError(f"convolution=circular: images of {pixels} pixels are smaller than the stem's padding of 3")


def _grouped(channels: int, *, groups: int) -> nn.GroupNorm:
    return _group_norm(channels, min(groups, channels))


def _quarter(channels: int) -> nn.GroupNorm:
    return _group_norm(channels, max(channels // 4, 1))


def _group_norm(channels: int, groups: int) -> nn.GroupNorm:
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
    "groupnorm1": partial(_grouped, groups=1),
    "groupnorm8": partial(_grouped, groups=8),
    "groupnorm32": partial(_grouped, groups=32),
    "groupnorm4th": _quarter,
    "sequentialghostnorm": SequentialGhostNorm,
}
_NOT_ELEMENTWISE = {"GLU", "LogSoftmax", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "Threshold"}


def _lookup(option: str, name: str, table: Mapping[str, Layer]) -> Layer:
    known = {key.lower(): value for key, value in table.items()}
    if name.lower() not in known:
        raise ValueError(f"{option}={name}: unknown; known: {', '.join(table)}")
    return known[name.lower()]
