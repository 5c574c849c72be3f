"""Settings of the optimizers and of their modifications: one dataclass each."""

from typing import Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from fullbatch.settings.types import (
    SETTINGS,
    Count,
    Float,
    Fraction,
    Name,
    NonNegative,
    Positive,
    Target,
    Text,
    family,
    infinity_as_name,
    none_as_blank,
)

Share = Annotated[Float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=SETTINGS)
class Momentum:
    """Settings shared by the optimizers with momentum."""

    lr: NonNegative
    momentum: Annotated[Float, Field(ge=0, lt=1)]
    weight_decay: NonNegative
    dampening: Annotated[Float, Field(ge=0, le=1)]
    nesterov: bool


@dataclass(frozen=True, config=SETTINGS)
class GradientDescent(Momentum):
    """`hyp/optim=gd`: gradient descent with momentum."""

    name: Annotated[Literal["gd"], Name]
    line_search: Annotated[Literal["wolfe", "non-monotone", "restarting"] | None, BeforeValidator(none_as_blank)]
    c1: Share
    c2: Share
    alpha_max: Positive
    max_iter: Count
    interval: Count
    factor: Share


@dataclass(frozen=True, config=SETTINGS)
class ClippedDescent(Momentum):
    """`hyp/optim=gd_clip`: gradient descent with gradients clipped to the largest of the last norms."""

    name: Annotated[Literal["gd_clip"], Name]
    interval: Count
    norm_type: Annotated[Literal[2, "inf"], BeforeValidator(infinity_as_name)]


@dataclass(frozen=True, config=SETTINGS)
class AdaptivelyClippedDescent(Momentum):
    """`hyp/optim=gd_agc`: gradient descent with adaptive clipping of each unit."""

    name: Annotated[Literal["gd_agc"], Name]
    clipping: Positive
    eps: Positive


@dataclass(frozen=True, config=SETTINGS)
class Adam:
    """`hyp/optim=adam`: Adam with decoupled weight decay."""

    name: Annotated[Literal["adam"], Name]
    lr: NonNegative
    betas: tuple[Fraction, Fraction]
    eps: NonNegative
    weight_decay: NonNegative
    amsgrad: bool


@dataclass(frozen=True, config=SETTINGS)
class Fista:
    """`hyp/optim=fista`: accelerated proximal gradient descent."""

    name: Annotated[Literal["fista"], Name]
    lr: NonNegative
    fista_mod: tuple[Positive, NonNegative, Annotated[Float, Field(gt=0, le=4)]]
    projection: Annotated[Literal["l2-ball", "box"] | None, BeforeValidator(none_as_blank)]
    radius: Positive
    restart: bool


@dataclass(frozen=True, config=SETTINGS)
class LBFGS:
    """`hyp/optim=lbfgs`: limited-memory BFGS."""

    name: Annotated[Literal["lbfgs"], Name]
    lr: NonNegative
    weight_decay: NonNegative
    history_size: Count
    line_search: Annotated[Literal["wolfe", "armijo"], Name]
    eps: Share
    damping: bool
    eta: Annotated[Float, Field(gt=1)]
    c1: Share
    c2: Share
    max_linesearches: Count


@dataclass(frozen=True, config=SETTINGS)
class UserOptimizer:
    """Settings shared by the optimizers of other packages; None leaves an argument at the default of the class."""

    lr: NonNegative | None
    momentum: NonNegative | None
    weight_decay: NonNegative | None
    args: dict[str, Any]


@dataclass(frozen=True, config=SETTINGS)
class TorchOptimizer(UserOptimizer):
    """`hyp/optim=torch`: an optimizer of torch.optim."""

    family: Annotated[Literal["torch"], Name]
    name: Text


@dataclass(frozen=True, config=SETTINGS)
class ImportedOptimizer(UserOptimizer):
    """`hyp/optim=import`: an optimizer of the user."""

    family: Annotated[Literal["import"], Name]
    target: Target

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.target.partition(":")[2]


Optim = Annotated[
    Union[  # noqa: UP007 (a runtime value)
        Annotated[GradientDescent, Tag("gd")],
        Annotated[Adam, Tag("adam")],
        Annotated[Fista, Tag("fista")],
        Annotated[AdaptivelyClippedDescent, Tag("gd_agc")],
        Annotated[ClippedDescent, Tag("gd_clip")],
        Annotated[LBFGS, Tag("lbfgs")],
        Annotated[TorchOptimizer, Tag("torch")],
        Annotated[ImportedOptimizer, Tag("import")],
    ],
    Discriminator(family),
]


@dataclass(frozen=True, config=SETTINGS)
class NoModification:
    """`hyp/optim_modification=none`: the unmodified optimizer."""

    name: Annotated[Literal["none"], Name]


@dataclass(frozen=True, config=SETTINGS)
class LayerwiseScaling:
    """`hyp/optim_modification=LARS` and `LARC`: a learning rate for each parameter."""

    name: Annotated[Literal["lars", "larc"], Name]
    trust_coefficient: Positive
    eps: NonNegative


@dataclass(frozen=True, config=SETTINGS)
class SAM:
    """`hyp/optim_modification=SAM`: the gradient at the worst point nearby."""

    name: Annotated[Literal["sam"], Name]
    rho: NonNegative


@dataclass(frozen=True, config=SETTINGS)
class ASAM:
    """`hyp/optim_modification=ASAM`: SAM in units of the parameters."""

    name: Annotated[Literal["asam"], Name]
    rho: NonNegative
    eta: NonNegative


OptimModification = Annotated[
    Union[  # noqa: UP007 (a runtime value)
        Annotated[NoModification, Tag("none")],
        Annotated[LayerwiseScaling, Tag("lars")],
        Annotated[LayerwiseScaling, Tag("larc")],
        Annotated[SAM, Tag("sam")],
        Annotated[ASAM, Tag("asam")],
    ],
    Discriminator(family),
]
