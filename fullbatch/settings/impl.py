"""Settings of the machine: `impl`, and of what is measured beside: `analysis`."""

from typing import Annotated, Literal

from pydantic.dataclasses import dataclass

from fullbatch.settings.types import SETTINGS, CheckpointName, Count, Name, NonNegativeInt, Positive


@dataclass(frozen=True, config=SETTINGS)
class CheckpointSettings:
    """`impl.checkpoint`: where the state of the run is kept."""

    name: CheckpointName | None
    save_every_nth_step: Count
    keep: NonNegativeInt
    max_minutes: Positive | None


@dataclass(frozen=True, config=SETTINGS)
class Setup:
    """`impl/setup`: the processes of the run."""

    name: Annotated[Literal["single"], Name]
    dist: Literal[False]


@dataclass(frozen=True, config=SETTINGS)
class Impl:
    """`impl`: how the run uses the machine; nothing here changes what is computed beyond rounding."""

    dtype: Annotated[Literal["float", "float32", "double", "float64"], Name]
    memory: Annotated[Literal["contiguous", "channels_last"], Name]
    non_blocking: bool
    benchmark: bool
    deterministic: bool
    check_determinism: bool
    pin_memory: bool
    threads: Count
    persistent_workers: bool
    mixed_precision: Annotated[Literal[True, False, "auto"], Name]
    tf32: Annotated[Literal[True, False, "auto"], Name]
    grad_scaling: bool
    JIT: str | None
    accumulation_dtype: Annotated[Literal["float", "float32", "double", "float64"], Name]
    validate_every_nth_step: Count
    checkpoint: CheckpointSettings
    compile: Annotated[Literal[True, False, "auto"], Name]
    device: str
    logger: str | None
    setup: Setup


@dataclass(frozen=True, config=SETTINGS)
class Analysis:
    """`analysis`: what is measured beside the training."""

    type: Annotated[Literal["none"], Name]
