"""Settings of the machine: `impl`."""

import math
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from fullbatch.settings.types import (
    SETTINGS,
    CheckpointName,
    Count,
    Device,
    Int,
    Name,
    NonNegativeInt,
    Positive,
    Text,
    family,
    none_as_blank,
)


def _rank(value: Any) -> int | str:
    """Return the number, or the name in lower case."""
    name = str(value).lower()
    if isinstance(value, bool) or not (name in ("slurm", "pbs") or name.isdecimal()):
        raise ValueError("should be a number, SLURM or PBS")
    return int(name) if name.isdecimal() else name


def _names(value: Any) -> Any:
    """Return the names in a blank, a name or a list of names, in lower case and without duplicates."""
    several = value if isinstance(value, list | tuple) else [value]
    names = [none_as_blank(name) for name in several]
    return tuple(name for at, name in enumerate(names) if name is not None and name not in names[:at])


def _true_for_bfloat16(value: Any) -> Any:
    """Return True for its synonym 'bfloat16', else the name in lower case."""
    name = value.lower() if isinstance(value, str) else value
    return True if name == "bfloat16" else name


def _scale(value: Any) -> bool | float:
    """Return a boolean or a power of two."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, int | float) or not 0 < value < 2.0**128 or math.frexp(value)[0] != 0.5:
        raise ValueError("should be True, False or a power of two")
    return float(value)


def _threads(value: Any) -> int | str:
    """Return a positive number, or 'auto' in any case."""
    name = str(value).lower()
    if isinstance(value, bool) or not (name == "auto" or (name.isdecimal() and int(name) > 0)):
        raise ValueError("should be a positive number or auto")
    return name if name == "auto" else int(name)


def _positive_or_minus_one(value: int) -> int:
    if value < 1 and value != -1:
        raise ValueError("should be a positive number, or -1")
    return value


@dataclass(frozen=True, config=SETTINGS)
class CheckpointSettings:
    """`impl.checkpoint`: where and how often the state of the run is saved."""

    name: CheckpointName | None
    save_every_nth_step: Count
    keep: Annotated[NonNegativeInt, Field(le=10_000)]
    max_minutes: Positive | None
    fork_from: CheckpointName | None


@dataclass(frozen=True, config=SETTINGS)
class Single:
    """`impl/setup=single`: one process."""

    name: Annotated[Literal["single"], Name]
    dist: Literal[False]


@dataclass(frozen=True, config=SETTINGS)
class Distributed:
    """`impl/setup=distributed`: several processes on one or more machines."""

    name: Annotated[Literal["distributed"], Name]
    dist: Literal[True]
    backend: Annotated[Literal["nccl", "gloo"], Name]
    strategy: Annotated[Literal["file_descriptor", "file_system"], Name]
    world_size: Count
    rank: Annotated[int | str, BeforeValidator(_rank)]
    processes_per_node: Annotated[Int, AfterValidator(_positive_or_minus_one)]
    url: Text
    MASTER_ADDR: Text | None
    MASTER_PORT: Annotated[Int, Field(ge=1, lt=2**16)] | None


Setup = Annotated[
    Union[Annotated[Single, Tag("single")], Annotated[Distributed, Tag("distributed")]],  # noqa: UP007 (a runtime value)
    Discriminator(family),
]


@dataclass(frozen=True, config=SETTINGS)
class Impl:
    """`impl`: how the run uses the machine; nothing here changes results by more than rounding."""

    dtype: Annotated[Literal["float", "float32", "double", "float64"], Name]
    memory: Annotated[Literal["contiguous", "channels_last"], Name]
    non_blocking: bool
    benchmark: bool
    deterministic: bool
    check_determinism: bool
    pin_memory: bool
    threads: Annotated[int | Literal["auto"], BeforeValidator(_threads)]
    persistent_workers: bool
    mixed_precision: Annotated[Literal[True, False, "auto", "float16"], BeforeValidator(_true_for_bfloat16)]
    tf32: Annotated[Literal[True, False, "auto"], Name]
    grad_scaling: Annotated[bool | float, BeforeValidator(_scale)]
    JIT: Text | None
    accumulation_dtype: Annotated[Literal["float", "float32", "double", "float64"], Name]
    validate_every_nth_step: Count
    checkpoint: CheckpointSettings
    compile: Annotated[Literal[True, False, "auto", "reduce-overhead"], Name]
    device: Device
    logger: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], BeforeValidator(_names)]
    setup: Setup
