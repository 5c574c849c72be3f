"""Models by name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fullbatch.models import densenets, pyramidnets, resnets, vgg
from fullbatch.models.libraries import build_imported, build_timm, build_torchvision
from fullbatch.models.linear import build_linear
from fullbatch.models.nfnets import build_nfnet


@dataclass(frozen=True)
class Family:
    """The builder of a family, and the numbers that may follow its name."""

    build: Callable[..., nn.Module]
    depths: tuple[int, ...] = ()


FAMILIES = {
    "resnet": Family(resnets.build_resnet, tuple(sorted(resnets.DEPTHS))),
    "densenet": Family(densenets.build_densenet, tuple(densenets.DEPTHS)),
    "vgg": Family(vgg.build_vgg, tuple(vgg.DEPTHS)),
    "pyramidnet": Family(pyramidnets.build_pyramidnet, tuple(pyramidnets.ALPHAS)),
    "nfn": Family(build_nfnet),
    "linear": Family(build_linear),
    "torchvision": Family(build_torchvision),
    "timm": Family(build_timm),
    "import": Family(build_imported),
}
ALIASES = {"nfnet": "nfn"}
NAMES = tuple(f"{name}{depth}" for name, family in FAMILIES.items() for depth in family.depths or ("",))
_GIVEN = ("channels", "classes", "pixels")


def family_named(name: str) -> tuple[Family, int | None]:
    """Return the family of a model, and the depth in its name; ``ValueError`` lists the known models."""
    family = name.lower().rstrip("0123456789")
    depth = name.lower().removeprefix(family)
    family = ALIASES.get(family, family)
    if family not in FAMILIES:
        raise ValueError(f"name={name}: unknown; known: {', '.join(NAMES)}")
    return FAMILIES[family], int(depth) if depth else None


def build_model(name: str, /, *, channels: int, classes: int, pixels: int, **options: Any) -> nn.Module:
    """Build a model with fresh weights: any ``torch.nn.Module`` from images [B, C, H, W] to outputs [B, classes].

    Args:
        name: in any case; the depth is part of it (``resnet18``) or an option (``resnet``, ``depth=18``). Models of
            other libraries are ``torchvision`` and ``timm`` with their ``name`` as an option, and ``import`` with
            ``target="package.module:callable"``.
        channels: of the images.
        classes: number of outputs.
        pixels: side of the square images.
        **options: of the family, as in ``config/model``; those left out have the defaults there.

    Raises:
        ValueError: an unknown name or option, or one that does not fit; the message lists what is known.
    """
    family, depth = family_named(name)
    build = family.build
    if depth is not None and options.setdefault("depth", depth) != depth:
        raise ValueError(f"name={name} and depth={options['depth']} contradict each other")
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
    for required, known in (("depth", f"; known: {', '.join(NAMES)}"), ("name", ""), ("target", "")):
        if required in accepted and required not in options:
            raise ValueError(f"name={name}: needs a {required}{known}")
