"""Building models by name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fullbatch.models import densenets, pyramidnets, resnets, vgg
from fullbatch.models.libraries import build_imported, build_timm, build_torchvision
from fullbatch.models.linear import build_linear
from fullbatch.models.nfnets import build_nfnet
from fullbatch.models.small import build_cnn, build_mlp


@dataclass(frozen=True)
class Family:
    """The function that builds the models of a family, and the depths with names of their own (``resnet18``)."""

    build: Callable[..., nn.Module]
    depths: tuple[int, ...] = ()


FAMILIES = {
    "resnet": Family(resnets.build_resnet, tuple(sorted(resnets.DEPTHS))),
    "densenet": Family(densenets.build_densenet, tuple(densenets.DEPTHS)),
    "vgg": Family(vgg.build_vgg, tuple(vgg.DEPTHS)),
    "pyramidnet": Family(pyramidnets.build_pyramidnet, tuple(pyramidnets.ALPHAS)),
    "nfn": Family(build_nfnet),
    "linear": Family(build_linear),
    "mlp": Family(build_mlp),
    "cnn": Family(build_cnn),
    "torchvision": Family(build_torchvision),
    "timm": Family(build_timm),
    "import": Family(build_imported),
}
ALIASES = {"nfnet": "nfn"}
NAMES = tuple(f"{name}{depth}" for name, family in FAMILIES.items() for depth in family.depths or ("",))
_DATA_OPTIONS = ("channels", "classes", "pixels")


def family_named(name: str) -> tuple[Family, int | None]:
    """Return the family of a model and the depth in its name; ``ValueError`` lists the known names."""
    family = name.lower().rstrip("0123456789")
    depth = name.lower().removeprefix(family)
    family = ALIASES.get(family, family)
    if family not in FAMILIES:
        raise ValueError(f"name={name}: unknown; known: {', '.join(NAMES)}")
    return FAMILIES[family], int(depth) if depth else None


def build_model(name: str, /, *, channels: int, classes: int, pixels: int, **options: Any) -> nn.Module:
    """Build a model with fresh weights, which maps images [B, C, H, W] to outputs [B, classes].

    Args:
        name: name in any case, with the depth (``resnet18``) or with the depth as an option (``resnet``, ``depth=18``).
            ``torchvision`` and ``timm`` take a ``name`` as an option, ``import`` takes
            ``target="package.module:callable"`` and ``args``.
        channels: channels of the images.
        classes: number of outputs.
        pixels: side of the square images.
        **options: options of the family, with names and defaults as in ``config/model``.

    Raises:
        ValueError: A name or an option is unknown or invalid; the message lists the accepted ones.
    """
    family, depth = family_named(name)
    if depth is not None and options.setdefault("depth", depth) != depth:
        raise ValueError(f"name={name} and depth={options['depth']} contradict each other")
    parameters = inspect.signature(family.build).parameters
    accepted = [key for key in parameters if key not in _DATA_OPTIONS]
    for option in options:
        if option not in accepted:
            raise ValueError(f"{option}: not an option of {name}; accepted: {', '.join(accepted) or 'none'}")
    for required, known in (("depth", f"; known: {', '.join(NAMES)}"), ("name", ""), ("target", "")):
        if required in accepted and parameters[required].default is inspect.Parameter.empty and required not in options:
            raise ValueError(f"name={name}: needs a {required}{known}")
    data_options = {"channels": channels, "classes": classes, "pixels": pixels}
    for option, value in data_options.items():
        if value < 1:
            raise ValueError(f"{option}={value}: should be at least 1")
    return family.build(**data_options, **options)
