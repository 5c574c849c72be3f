"""Settings of the model: one dataclass per family."""

from typing import Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from fullbatch.settings.types import SETTINGS, Count, Float, Fraction, Int, Name, NonNegative, NonNegativeInt, family


@dataclass(frozen=True, config=SETTINGS)
class ResNet:
    """`model=resnet*`: the residual networks."""

    name: str
    depth: Int
    width: Count
    stem: str
    convolution: str
    nonlin_fn: str
    normalization: str
    downsample: str
    initialization: str


@dataclass(frozen=True, config=SETTINGS)
class DenseNet:
    """`model=densenet*`: the densely connected networks."""

    name: str
    depth: Int
    stem: str
    convolution: str
    nonlin_fn: str
    normalization: str
    bn_size: Count
    memory_efficient: bool
    drop_rate: Fraction


@dataclass(frozen=True, config=SETTINGS)
class VGG:
    """`model=vgg*`: plain convolutional networks; the depth is part of the name."""

    name: str
    head: str
    convolution: str
    nonlin_fn: str
    normalization: str
    drop_rate: Fraction
    classical_weight_init: bool


@dataclass(frozen=True, config=SETTINGS)
class PyramidNet:
    """`model=pyramidnet*`: the pyramidal residual networks."""

    name: str
    depth: Int
    alpha: NonNegativeInt
    bottleneck: bool


@dataclass(frozen=True, config=SETTINGS)
class NFNet:
    """`model=nfn`: the normalizer-free networks."""

    name: str
    stem: str
    variant: str
    stochdepth_rate: Fraction
    alpha: NonNegative
    se_ratio: Annotated[Float, Field(gt=0, le=1)]
    nonlin: str
    use_dropout: bool


@dataclass(frozen=True, config=SETTINGS)
class Linear:
    """`model=linear`: softmax regression."""

    name: str


@dataclass(frozen=True, config=SETTINGS)
class LibraryModel:
    """`model=torchvision` and `model=timm`: a classifier of one of these libraries."""

    family: Annotated[Literal["torchvision", "timm"], Name]
    name: str


@dataclass(frozen=True, config=SETTINGS)
class ImportedModel:
    """`model=import`: a module of the user."""

    family: Annotated[Literal["import"], Name]
    target: str


def _kind(value: Any) -> str | None:
    """Return the key ``family`` if there is one, else the family in the name."""
    given = value.get("family") if isinstance(value, dict) else getattr(value, "family", None)
    return str(given).lower() if given else family(value)


Model = Annotated[
    Union[  # noqa: UP007 (a runtime value)
        Annotated[ResNet, Tag("resnet")],
        Annotated[DenseNet, Tag("densenet")],
        Annotated[VGG, Tag("vgg")],
        Annotated[PyramidNet, Tag("pyramidnet")],
        Annotated[NFNet, Tag("nfnet")],
        Annotated[NFNet, Tag("nfn")],
        Annotated[Linear, Tag("linear")],
        Annotated[LibraryModel, Tag("torchvision")],
        Annotated[LibraryModel, Tag("timm")],
        Annotated[ImportedModel, Tag("import")],
    ],
    Discriminator(_kind),
]
