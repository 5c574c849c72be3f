"""Image transforms of a whole batch, in integer arithmetic and so the same on every device.

Each takes images uint8 [n, C, H, W] and the random choices as tensors with one entry per image.
"""

import math

import torch
from torch import Tensor

_LEVELS = 256  # number of areas and of ratios of a rectangle to choose from


def crop(images: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Cut ``height`` x ``width`` out of each image at (``top``, ``left``), int64 [n] each."""
    n, channels, full_height, full_width = images.shape
    rows = top[:, None] + torch.arange(height, device=top.device)
    columns = left[:, None] + torch.arange(width, device=left.device)
    index = (rows[:, :, None] * full_width + columns[:, None, :]).view(n, 1, height * width)
    flat = images.reshape(n, channels, full_height * full_width)
    # One gather over flat images: 0.2 ms for 128 x 3 x 32 x 32 on two cores; indexing by four tensors takes 1.3 ms.
    return flat.gather(2, index.expand(-1, channels, -1)).view(n, channels, height, width)


def flip(images: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """Mirror the ``chosen`` images (bool [n]) along ``dim``: -1 swaps left and right, -2 top and bottom."""
    n = len(images)
    both = torch.cat([images, images.flip(dim)])
    rows = torch.arange(n, device=images.device) + n * chosen
    return both.index_select(0, rows)  # copies whole images: faster than torch.where on bytes


def erase(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, value: Tensor | int) -> Tensor:
    """Fill the rectangle (``top``, ``left``, ``height``, ``width``; int64 [n] each) of each image with ``value``.

    ``value`` is a number 0..255 or one per channel, uint8 [C, 1, 1]. A rectangle of height 0 erases nothing.
    """
    inside = _between(images.shape[-2], top, height)[:, None, :, None]
    inside = inside & _between(images.shape[-1], left, width)[:, None, None, :]
    return images.masked_fill(inside, value) if isinstance(value, int) else torch.where(inside, value, images)


def _between(length: int, start: Tensor, extent: Tensor) -> Tensor:
    positions = torch.arange(length, device=start.device)
    return (positions >= start[:, None]) & (positions < (start + extent)[:, None])


def rectangles(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Return the equally likely rectangles that random erasing draws from: int64 [K, 2], (height, width).

    Areas are equally spaced in ``scale`` (fractions of the image), and ratios height/width equally spaced in
    log(``ratio``), at the midpoints of 256 intervals each. Sides are rounded to pixels. Rectangles as high or as wide
    as the image are left out, as torchvision rejects them. A table is used because square roots are rounded differently
    on different devices.
    """
    levels = (torch.arange(_LEVELS, dtype=torch.float64) + 0.5) / _LEVELS
    area = (height * width * (scale[0] + (scale[1] - scale[0]) * levels))[:, None]
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * levels)[None, :]
    sides = torch.stack([(area * aspect).sqrt().round(), (area / aspect).sqrt().round()], dim=-1).to(torch.int64)
    fits = (sides[..., 0] < height) & (sides[..., 1] < width)
    return sides[fits]


def chance(bits: Tensor, p: float) -> Tensor:
    """Return True with probability p (to 2^-24), by a comparison of integers."""
    return (bits >> 39) < round(p * 2**24)


def two_integers(bits: Tensor, first: Tensor | int, second: Tensor | int) -> tuple[Tensor, Tensor]:
    """Return integers in [0, first) and [0, second) from the upper 31 and the lower 32 bits of one draw."""
    return (bits >> 32).remainder(first), (bits & 0xFFFF_FFFF).remainder(second)
