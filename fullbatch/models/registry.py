"""Models by name."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from fullbatch.models.linear import build_linear
from fullbatch.models.resnets import DEPTHS, build_resnet

FAMILIES: dict[str, Callable[..., nn.Module]] = {"resnet": build_resnet, "linear": build_linear}
NAMES = (*(f"resnet{depth}" for depth in sorted(DEPTHS)), "linear")
_GIVEN = ("channels", "classes", "pixels")


def build_model(name: str, *, channels: int, classes: int, pixels: int, **options: Any) -> nn.Module:
    """Build a model with fresh weights: any ``torch.nn.Module`` from pictures [B, C, H, W] to outputs [B, classes].

    Args:
        name: in any case; the depth is part of it (``resnet18``) or an option (``resnet``, ``depth=18``).
        channels: of the pictures.
        classes: number of outputs.
        pixels: side of the square pictures.
        **options: of the family, as in ``config/model``; those left out have the defaults there.

    Raises:
        ValueError: an unknown name or option, or one that does not fit; the message lists what is known.
    """
    family, depth = re.fullmatch(r"(.*?)(\d*)", name.lower()).groups()  # type: ignore[union-attr]  # matches any line
    if family not in FAMILIES:
        raise ValueError(f"name={name}: unknown; known: {', '.join(NAMES)}")
    build = FAMILIES[family]
    if depth and options.setdefault("depth", int(depth)) != int(depth):
        raise ValueError(f"name={name} and depth={options['depth']} contradict each other")
    accepted = [option for option in inspect.signature(build).parameters if option not in _GIVEN]
    for option in options:
        if option not in accepted:
            raise ValueError(f"{option}: no option of {name}; accepted: {', '.join(accepted) or 'none'}")
    if "depth" in accepted and "depth" not in options:
        raise ValueError(f"name={name}: needs a depth; known: {', '.join(NAMES)}")
    return build(channels=channels, classes=classes, pixels=pixels, **options)
