"""Types of settings: numbers with their ranges, names in any case, and the selection of a dataclass by name."""

import math
import os
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from fullbatch.runtime.plain_text import printable

SETTINGS = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Configuration of every dataclass: unknown keys and numbers that are not finite are errors."""

_LARGEST = (2 - 2**-23) * 2.0**127
_LONGEST_NAME = 200  # file systems allow 255 bytes, and files of a run add to its name


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number, not a boolean")
    return value


def _single(value: float) -> float:
    if abs(value) > _LARGEST:
        raise ValueError(f"should be at most {_LARGEST:.2g}, the largest number of single precision")
    return value


def _below_2_63(value: int) -> int:
    if value >= 2**63:
        raise ValueError("should be below 2^63")
    return value


def _file_name(value: str) -> str:
    if "/" in value or "\\" in value or "\0" in value:
        raise ValueError("should be part of a file name, without slashes")
    return _plain(value)


def _below(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/") or "\0" in value or value.endswith("/"):
        raise ValueError("should be the name of a file below checkpoints/")
    return _plain(value)


def _plain(name: str) -> str:
    if printable(name) != name:
        raise ValueError("should be without control characters and invisible characters")
    if max(len(os.fsencode(part)) for part in name.split("/")) > _LONGEST_NAME:
        raise ValueError(f"should be at most {_LONGEST_NAME} bytes long")
    return name


def infinity_as_name(value: Any) -> Any:
    """Return 'inf' for infinity, else the name in lower case."""
    return "inf" if value == math.inf else _lower(value)  # YAML parses inf as a number


def none_as_blank(value: Any) -> Any:
    """Return None for the name 'none', else the name in lower case."""
    return None if _lower(value) == "none" else _lower(value)


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool), AfterValidator(_single)]
Count = Annotated[Int, Field(ge=1)]
NonNegativeInt = Annotated[Int, Field(ge=0)]
NonNegative = Annotated[Float, Field(ge=0)]
Positive = Annotated[Float, Field(gt=0)]
Fraction = Annotated[Float, Field(ge=0, lt=1)]
Name = BeforeValidator(_lower)
Seed = Annotated[NonNegativeInt, AfterValidator(_below_2_63)]
FileName = Annotated[str, AfterValidator(_file_name)]
"""Part of file names, without folders."""
CheckpointName = Annotated[str, AfterValidator(_below)]
"""A file in ``checkpoints/`` or in a folder below it."""
ChannelValues = tuple[Float, ...]


def family(value: Any) -> str | None:
    """Return the key ``name`` without the depth at its end, which selects the dataclass."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return str(name).lower().rstrip("0123456789") if name else None
