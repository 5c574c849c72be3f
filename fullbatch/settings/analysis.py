"""Settings of the measurements during training: `analysis`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from fullbatch.settings.types import SETTINGS, Count, Float, Name, NonNegativeInt, Positive, Targets, none_as_blank


def _six_or_none(value: int) -> int:
    if 0 < value < 6:
        raise ValueError("should be 0, or greater than or equal to 6 (two products for each of three parts)")
    return value


@dataclass(frozen=True, config=SETTINGS)
class Sharpness:
    """`analysis.sharpness`: top eigenvalues of the Hessian (exact or by differences) or the Gauss-Newton matrix."""

    every: Count | None
    top_k: Count
    tolerance: Annotated[Float, Field(gt=0, lt=1)]
    max_matvecs: Count
    matrix: Annotated[Literal["hessian", "gauss-newton", "central-differences"], Name]
    trace_matvecs: Annotated[NonNegativeInt, AfterValidator(_six_or_none)]
    density_vectors: NonNegativeInt
    density_steps: Count


@dataclass(frozen=True, config=SETTINGS)
class Analysis:
    """`analysis`: the quantities that are measured, and the steps after which they are."""

    type: Annotated[Literal["none", "final", "limited", "full", "edge_of_stability"], Name]
    check_every_nth_step: Count
    measure_param_norm: bool
    measure_grad_norm: bool
    check_momentum: bool
    internal_batch_size_chunks: Count
    record_gradient_norm_per_batch: bool
    compute_gradient_SNR: bool
    compute_gradient_noise_scale: bool
    compute_gradient_curvature: bool
    sample_gradient_norms: Annotated[Literal["train", "eval"] | None, BeforeValidator(none_as_blank)]
    compute_flatness: bool
    flatness_step_size: Positive
    flatness_threshold: Positive
    flatness_norm: Annotated[Literal["filter", "layer", "weight", "dfilter", "dlayer"], Name]
    flatness_directions: Count
    flatness_max_steps: Count
    compute_worst_case: bool
    worst_case_rho: Positive
    worst_case_m: Count
    save_model_every_nth_step: Count | None
    probes: Targets
    sharpness: Sharpness
