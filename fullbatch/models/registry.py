"""Models by name."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fullbatch.models.linear import build_linear
from fullbatch.models.resnets import DEPTHS, build_resnet


@dataclass(frozen=True)
class Family:
    """The builder of a family, and the numbers that may follow its name."""

    build: Callable[..., nn.Module]
    depths: tuple[int, ...] = ()


FAMILIES = {
    "resnet": Family(build_resnet, tuple(sorted(DEPTHS))),
    "linear": Family(build_linear),
}
NAMES = tuple(f"{name}{depth}" for name, family in FAMILIES.items() for depth in family.depths or ("",))
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
    if depth and options.setdefault("depth", int(depth)) != int(depth):
        raise ValueError(f"name={name} and depth={options['depth']} contradict each other")
    build = FAMILIES[family].build
    _refuse_options(name, options, accepted=[key for key in inspect.signature(build).parameters if key not in _GIVEN])
    given = {"channels": channels, "classes": classes, "pixels": pixels}
    for option, value in given.items():
        if value < 1:
            raise ValueError(f"{option}={value}: should be at least 1")
    return build(**given, **options)


def _refuse_options(name: str, options: dict[str, Any], accepted: list[str]) -> None:
    for option in options:
        if option not in accepted:
            raise ValueError(f"{option}: no option of {name}; accepted: {', '.join(accepted) or 'none'}")
    if "depth" in accepted and "depth" not in options:
        raise ValueError(f"name={name}: needs a depth; known: {', '.join(NAMES)}")
