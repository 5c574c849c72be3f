"""Settings of the optimizer, a dataclass each, and of what wraps it."""

from typing import Annotated, Literal, Union

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from fullbatch.settings.types import SETTINGS, Float, Fraction, Name, NonNegative, family


@dataclass(frozen=True, config=SETTINGS)
class GradientDescent:
    """`hyp/optim=gd`: gradient descent with momentum."""

    name: Annotated[Literal["gd"], Name]
    lr: NonNegative
    momentum: Annotated[Float, Field(ge=0, lt=1)]
    weight_decay: NonNegative
    dampening: Annotated[Float, Field(ge=0, le=1)]
    nesterov: bool
    line_search: str | None


@dataclass(frozen=True, config=SETTINGS)
class Adam:
    """`hyp/optim=adam`: Adam with decoupled weight decay."""

    name: Annotated[Literal["adam"], Name]
    lr: NonNegative
    betas: tuple[Fraction, Fraction]
    eps: NonNegative
    weight_decay: NonNegative
    amsgrad: bool


Optim = Annotated[
    Union[Annotated[GradientDescent, Tag("gd")], Annotated[Adam, Tag("adam")]],  # noqa: UP007
    Discriminator(family),
]


@dataclass(frozen=True, config=SETTINGS)
class OptimModification:
    """`hyp/optim_modification`: a wrapper around the optimizer."""

    name: Annotated[Literal["none"], Name]
