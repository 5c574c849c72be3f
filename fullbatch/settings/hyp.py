"""Settings of the training: `hyp`, without the optimizer."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from fullbatch.settings.optim import Optim, OptimModification
from fullbatch.settings.types import (
    SETTINGS,
    Count,
    Float,
    Fraction,
    Name,
    NonNegative,
    NonNegativeInt,
    Positive,
    Target,
    Targets,
    Text,
    infinity_as_name,
)


@dataclass(frozen=True, config=SETTINGS)
class GradNoise:
    """`hyp.grad_noise`: noise on the gradient."""

    additive: NonNegative | None
    multiplicative: NonNegative | None


@dataclass(frozen=True, config=SETTINGS)
class GradReg:
    """`hyp.grad_reg`: the gradient regularizer."""

    norm: Literal[2]
    block_strength: Float
    acc_strength: Float
    eps: Positive
    implementation: Text


@dataclass(frozen=True, config=SETTINGS)
class NormBiasSettings:
    """`hyp.norm_bias`: a pull of the parameter norm towards a value."""

    strength: Float
    norm_type: Literal[1, 2]
    bias: Float


@dataclass(frozen=True, config=SETTINGS)
class Hyp:
    """`hyp`: how the model is trained."""

    template_name: Text | None
    shuffle: bool
    sample_with_replacement: bool
    train_stochastic: bool
    train_switch_stochastic: NonNegativeInt | None
    train_semi_stochastic: bool
    steps: Count
    scheduler: Text | None
    stop_at_full_training_accuracy: NonNegativeInt
    warmup: NonNegativeInt
    only_linear_layers_weight_decay: bool
    evaluate_ema: bool
    eval_ema_momentum: Annotated[Float, Field(ge=0, le=1)]
    grad_clip: Positive | None
    batch_clip: Positive | None
    grad_clip_norm: Annotated[Literal[2, "inf"], BeforeValidator(infinity_as_name)]
    grad_noise: GradNoise
    grad_reg: GradReg
    sub_batch: Count
    label_smoothing: Fraction
    loss_modification: Text | None
    loss_target: Target | None
    norm_bias: NormBiasSettings
    test_time_flips: bool
    gradient_average: Annotated[Literal["exact", "moving"], Name]
    blocks_per_update: Count
    max_evaluations: Positive | None
    recalibrate_batchnorm: bool
    label_noise: Fraction
    transforms: Targets
    optim: Optim
    optim_modification: OptimModification
