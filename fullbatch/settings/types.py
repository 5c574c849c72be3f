"""Types of settings: numbers with their ranges, names in any case, and the selection of a dataclass by name."""

import math
import os
import re
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


def _below(exponent: int) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, int | float) and abs(value) >= 2**exponent:
            raise ValueError(f"should be below 2^{exponent}")
        return _no_bool(value)

    return BeforeValidator(check)


def _single(value: float) -> float:
    if abs(value) > _LARGEST:
        raise ValueError(f"should be at most {_LARGEST:.2g}, the largest number of single precision")
    return value


def _text(value: Any) -> Any:
    if isinstance(value, bool | float):  # in a file; whether it was 1e3 or 1000.0 is not known
        raise ValueError("should be text, in a file with quotes: '...'")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("should be text in UTF-8") from None
    return str(value) if isinstance(value, int) else value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d{1,3})?", value.lower()):
        raise ValueError("should be auto, cpu, cuda, cuda:0, mps or xpu")
    return value


def _target(value: str) -> str:
    if not re.fullmatch(r"[^\s:/.]+(\.[^\s:/.]+)*:\w+(\.\w+)*", value):
        raise ValueError("should be package.module:callable")
    return value


def _file_name(value: str) -> str:
    if "/" in value or "\\" in value or "\0" in value:
        raise ValueError("should be part of a file name, without slashes")
    return _plain(value)


def _below_folder(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/") or "\0" in value or value.endswith("/"):
        raise ValueError("should be a name, or a path below checkpoints/")
    return _plain(value)


def _plain(name: str) -> str:
    if printable(name) != name:
        raise ValueError("should be without control characters and invisible characters")
    if max(len(os.fsencode(part)) for part in name.split("/")) > _LONGEST_NAME:
        raise ValueError(f"should be at most {_LONGEST_NAME} bytes long")
    return name


def _file(value: str) -> str:
    if "\0" in value or value.endswith("/"):
        raise ValueError("should be the name of a checkpoint in checkpoints/, or the path of a file")
    return _plain(value)


def infinity_as_name(value: Any) -> Any:
    """Return 'inf' for infinity, else the name in lower case."""
    return "inf" if value == math.inf else _lower(value)  # YAML parses inf as a number


def none_as_blank(value: Any) -> Any:
    """Return None for the name 'none', else the name in lower case."""
    return None if _lower(value) == "none" else _lower(value)


def _as_list(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


Int = Annotated[int, _below(31)]
LargeInt = Annotated[int, _below(63)]
Float = Annotated[float, BeforeValidator(_no_bool), AfterValidator(_single)]
Count = Annotated[Int, Field(ge=1)]
NonNegativeInt = Annotated[Int, Field(ge=0)]
NonNegative = Annotated[Float, Field(ge=0)]
Positive = Annotated[Float, Field(gt=0)]
Fraction = Annotated[Float, Field(ge=0, lt=1)]
Name = BeforeValidator(_lower)
Seed = Annotated[LargeInt, Field(ge=0)]
Text = Annotated[str, BeforeValidator(_text)]
"""Text; a whole number in a file is read as text."""
Device = Annotated[Text, AfterValidator(_device)]
Target = Annotated[Text, AfterValidator(_target)]
Targets = Annotated[list[Target], BeforeValidator(_as_list)]
FileName = Annotated[Text, AfterValidator(_file_name)]
"""Part of file names, without folders."""
DatabaseName = Annotated[Text, AfterValidator(_below_folder)]
"""A database in ``checkpoints/`` or in a folder below it."""
CheckpointName = Annotated[Text, AfterValidator(_file)]
"""A checkpoint in ``checkpoints/``, or the path of one."""
ChannelValues = tuple[Float, ...]


def family(value: Any) -> str | None:
    """Return what selects the dataclass: the key ``family``, else the key ``name`` without the depth at its end."""

    def entry(key: str) -> Any:
        return value.get(key) if isinstance(value, dict) else getattr(value, key, None)

    if entry("family"):
        return str(entry("family")).lower()
    return str(entry("name")).lower().rstrip("0123456789") if entry("name") else None
