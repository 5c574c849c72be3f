"""Settings of the model: one dataclass per family."""

from typing import Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from fullbatch.settings.types import (
    SETTINGS,
    Count,
    Float,
    Fraction,
    Int,
    Name,
    NonNegative,
    NonNegativeInt,
    Target,
    Text,
    family,
)


@dataclass(frozen=True, config=SETTINGS)
class Network:
    """Settings shared by all models."""

    weights: Text | None
    """A file with the initial weights; None draws them."""


@dataclass(frozen=True, config=SETTINGS)
class ResNet(Network):
    """`model=resnet*`: the residual networks."""

    name: Text
    depth: Int
    width: Count
    stem: Text
    convolution: Text
    nonlin_fn: Text
    normalization: Text
    downsample: Text
    initialization: Text


@dataclass(frozen=True, config=SETTINGS)
class DenseNet(Network):
    """`model=densenet*`: the densely connected networks."""

    name: Text
    depth: Int
    stem: Text
    convolution: Text
    nonlin_fn: Text
    normalization: Text
    bn_size: Count
    memory_efficient: bool
    drop_rate: Fraction


@dataclass(frozen=True, config=SETTINGS)
class VGG(Network):
    """`model=vgg*`: plain convolutional networks; the depth is part of the name."""

    name: Text
    head: Text
    convolution: Text
    nonlin_fn: Text
    normalization: Text
    drop_rate: Fraction
    classical_weight_init: bool


@dataclass(frozen=True, config=SETTINGS)
class PyramidNet(Network):
    """`model=pyramidnet*`: the pyramidal residual networks."""

    name: Text
    depth: Int
    alpha: NonNegativeInt
    bottleneck: bool


@dataclass(frozen=True, config=SETTINGS)
class NFNet(Network):
    """`model=nfn`: the normalizer-free networks."""

    name: Text
    stem: Text
    variant: Text
    stochdepth_rate: Fraction
    alpha: NonNegative
    se_ratio: Annotated[Float, Field(gt=0, le=1)]
    nonlin: Text
    use_dropout: bool


@dataclass(frozen=True, config=SETTINGS)
class Linear(Network):
    """`model=linear`: softmax regression."""

    name: Text


@dataclass(frozen=True, config=SETTINGS)
class LibraryModel(Network):
    """`model=torchvision` and `model=timm`: a classifier of one of these libraries."""

    family: Annotated[Literal["torchvision", "timm"], Name]
    name: Text


@dataclass(frozen=True, config=SETTINGS)
class ImportedModel(Network):
    """`model=import`: a module of the user."""

    family: Annotated[Literal["import"], Name]
    target: Target
    args: dict[str, Any]


@dataclass(frozen=True, config=SETTINGS)
class MLP(Network):
    """`model=mlp`: a fully connected network."""

    name: Text
    width: Count
    depth: Count
    nonlin_fn: Text


@dataclass(frozen=True, config=SETTINGS)
class CNN(Network):
    """`model=cnn`: convolutions, each followed by a pooling."""

    name: Text
    width: Count
    depth: Count
    nonlin_fn: Text
    pooling: Annotated[Literal["max", "average"], Name]


Model = Annotated[
    Union[  # noqa: UP007 (a runtime value)
        Annotated[ResNet, Tag("resnet")],
        Annotated[DenseNet, Tag("densenet")],
        Annotated[VGG, Tag("vgg")],
        Annotated[PyramidNet, Tag("pyramidnet")],
        Annotated[NFNet, Tag("nfnet")],
        Annotated[NFNet, Tag("nfn")],
        Annotated[Linear, Tag("linear")],
        Annotated[MLP, Tag("mlp")],
        Annotated[CNN, Tag("cnn")],
        Annotated[LibraryModel, Tag("torchvision")],
        Annotated[LibraryModel, Tag("timm")],
        Annotated[ImportedModel, Tag("import")],
    ],
    Discriminator(family),
]
