"""What a run can be told, as frozen dataclasses: every key with its type, its range and its accepted names.

The same tree as ``config/``; ``fullbatch.config.parse`` fills it. Nothing here imports torch.
"""

import math
from typing import Annotated, Any, Literal, Union

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

_SETTINGS = ConfigDict(extra="forbid", allow_inf_nan=False)


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number, not a truth value")
    return value


def _infinity_as_name(value: Any) -> Any:
    return "inf" if value == math.inf else _lower(value)  # YAML reads inf as a number


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Count = Annotated[Int, Field(ge=1)]
NonNegativeInt = Annotated[Int, Field(ge=0)]
NonNegative = Annotated[Float, Field(ge=0)]
Positive = Annotated[Float, Field(gt=0)]
Fraction = Annotated[Float, Field(ge=0, lt=1)]
Name = BeforeValidator(_lower)
ChannelValues = tuple[Float, ...]


@dataclass(frozen=True, config=_SETTINGS)
class DataBase:
    """`data/db`: where a frozen augmented copy of the data lives."""

    name: Annotated[Literal["none"], Name]


@dataclass(frozen=True, config=_SETTINGS)
class Data:
    """`data`: the pictures and how they come to the model."""

    name: str
    path: str | None
    size: Count | None
    valid_size: Count | None
    subset_seed: NonNegativeInt
    channels: Count | None
    classes: Annotated[Int, Field(ge=2)] | None
    pixels: Count | None
    normalize: bool
    mean: ChannelValues | None
    std: tuple[Positive, ...] | None
    batch_size: Count
    augmentations_train: dict[str, Any] | None
    augmentations_val: dict[str, Any] | None
    caching: Annotated[Literal["device", "ram", True, False], Name] | None
    drop_last: bool
    download: bool
    mirrors: list[str] | None
    db: DataBase


@dataclass(frozen=True, config=_SETTINGS)
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


@dataclass(frozen=True, config=_SETTINGS)
class Linear:
    """`model=linear`: softmax regression."""

    name: str


def _family(value: Any) -> str | None:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return str(name).lower().rstrip("0123456789") if name else None


Model = Annotated[
    Union[Annotated[ResNet, Tag("resnet")], Annotated[Linear, Tag("linear")]],  # noqa: UP007 (a runtime value)
    Discriminator(_family),
]


@dataclass(frozen=True, config=_SETTINGS)
class GradientDescent:
    """`hyp/optim=gd`: gradient descent with momentum."""

    name: Annotated[Literal["gd"], Name]
    lr: NonNegative
    momentum: Annotated[Float, Field(ge=0, lt=1)]
    weight_decay: NonNegative
    dampening: Annotated[Float, Field(ge=0, le=1)]
    nesterov: bool
    line_search: str | None


@dataclass(frozen=True, config=_SETTINGS)
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
    Discriminator(_family),
]


@dataclass(frozen=True, config=_SETTINGS)
class OptimModification:
    """`hyp/optim_modification`: a wrapper around the optimizer."""

    name: Annotated[Literal["none"], Name]


@dataclass(frozen=True, config=_SETTINGS)
class GradNoise:
    """`hyp.grad_noise`: noise on the gradient."""

    additive: NonNegative | None
    multiplicative: NonNegative | None


@dataclass(frozen=True, config=_SETTINGS)
class GradReg:
    """`hyp.grad_reg`: the gradient regularizer."""

    norm: Literal[2]
    block_strength: Float
    acc_strength: Float
    eps: Positive
    implementation: str


@dataclass(frozen=True, config=_SETTINGS)
class NormBiasSettings:
    """`hyp.norm_bias`: a bias of the parameter norm."""

    strength: Float
    norm_type: Literal[1, 2]
    bias: Float


@dataclass(frozen=True, config=_SETTINGS)
class Hyp:
    """`hyp`: how the model is trained."""

    template_name: str | None
    shuffle: bool
    sample_with_replacement: bool
    train_stochastic: bool
    train_switch_stochastic: NonNegativeInt | None
    train_semi_stochastic: bool
    steps: Count
    scheduler: str | None
    stop_at_full_training_accuracy: NonNegativeInt
    warmup: NonNegativeInt
    only_linear_layers_weight_decay: bool
    evaluate_ema: bool
    eval_ema_momentum: Annotated[Float, Field(ge=0, le=1)]
    grad_clip: Positive | None
    batch_clip: Positive | None
    grad_clip_norm: Annotated[Literal[2, "inf"], BeforeValidator(_infinity_as_name)]
    grad_noise: GradNoise
    grad_reg: GradReg
    sub_batch: Count
    label_smoothing: Fraction
    loss_modification: str | None
    norm_bias: NormBiasSettings
    test_time_flips: bool
    gradient_average: Annotated[Literal["exact", "moving"], Name]
    blocks_per_update: Count
    max_evaluations: Positive | None
    recalibrate_batchnorm: bool
    label_noise: Fraction
    optim: Optim
    optim_modification: OptimModification


@dataclass(frozen=True, config=_SETTINGS)
class CheckpointSettings:
    """`impl.checkpoint`: where the state of the run is kept."""

    name: str | None
    save_every_nth_step: Count
    keep: NonNegativeInt
    max_minutes: Positive | None


@dataclass(frozen=True, config=_SETTINGS)
class Setup:
    """`impl/setup`: the processes of the run."""

    name: Annotated[Literal["single"], Name]
    dist: Literal[False]


@dataclass(frozen=True, config=_SETTINGS)
class Impl:
    """`impl`: how the run uses the machine; nothing here changes what is computed beyond rounding."""

    dtype: Annotated[Literal["float", "float32", "double", "float64"], Name]
    memory: Annotated[Literal["contiguous", "channels_last"], Name]
    non_blocking: bool
    benchmark: bool
    deterministic: bool
    pin_memory: bool
    threads: Count
    persistent_workers: bool
    mixed_precision: bool
    grad_scaling: bool
    JIT: str | None
    accumulation_dtype: Annotated[Literal["float", "float32", "double", "float64"], Name]
    validate_every_nth_step: Count
    checkpoint: CheckpointSettings
    compile: bool
    device: str
    logger: str | None
    setup: Setup


@dataclass(frozen=True, config=_SETTINGS)
class Analysis:
    """`analysis`: what is measured beside the training."""

    type: Annotated[Literal["none"], Name]


@dataclass(frozen=True, config=_SETTINGS)
class Run:
    """One run, whole."""

    base_dir: str
    seed: NonNegativeInt | None
    name: str
    dryrun: bool
    plan: bool
    data: Data
    model: Model
    hyp: Hyp
    impl: Impl
    analysis: Analysis
