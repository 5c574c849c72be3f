"""Settings of the model, a dataclass a family."""

from typing import Annotated, Union

from pydantic import Discriminator, Tag
from pydantic.dataclasses import dataclass

from fullbatch.settings.types import SETTINGS, Count, Int, family


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
class Linear:
    """`model=linear`: softmax regression."""

    name: str


Model = Annotated[
    Union[Annotated[ResNet, Tag("resnet")], Annotated[Linear, Tag("linear")]],  # noqa: UP007 (a runtime value)
    Discriminator(family),
]
