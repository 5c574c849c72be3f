"""A cache of facts about folders of images, as JSON files, so that the next run need not read the images again."""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fullbatch.data.sources.image_files import DEPTHS
from fullbatch.runtime.files import expand_home

_log = logging.getLogger(__name__)
_VERSION = 1  # of the format; part of the file names


@dataclass(frozen=True)
class Facts:
    """Classes, number of images (train, valid), shape, and mean and std of the training images if computed.

    ``bits`` is the number of significant bits of images with 16 bits per channel, None where there are none.
    """

    classes: tuple[str, ...]
    counts: tuple[int, int]
    channels: int
    pixels: int
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None
    bits: int | None = None

    def with_statistics(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Facts":
        """Return the facts with statistics."""
        return replace(self, statistics=(mean, std))


def fingerprint(*parts: Any) -> str:
    """Return a hash of nested sequences of strings and numbers."""
    return hashlib.sha256(json.dumps([_VERSION, parts]).encode()).hexdigest()[:32]


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/fullbatch``, by default ``~/.cache/fullbatch``; ``ValueError`` without a home folder."""
    return expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "fullbatch"


def read(name: str) -> Facts | None:
    """Return the facts cached under ``name``; None where there are none or they are invalid."""
    try:
        path = cache_folder() / f"{name}.json"
    except ValueError:  # reported by ``write``
        return None
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, RecursionError, ValueError, TypeError, KeyError, OverflowError) as error:
        _log.warning("%s: invalid, reading the images instead (%r)", path, error)
        return None


def _parse(stored: Any) -> Facts:
    classes, (train, valid) = tuple(map(str, stored["classes"])), map(int, stored["counts"])
    channels, pixels, statistics = int(stored["channels"]), int(stored["pixels"]), None
    if stored["statistics"] is not None:
        mean, std = (tuple(map(float, values)) for values in stored["statistics"])
        if not len(mean) == len(std) == channels or not all(0 <= value <= 1 for value in (*mean, *std)):
            raise ValueError("the statistics do not fit the channels")
        statistics = mean, std
    if channels not in (1, 3) or pixels < 1:
        raise ValueError(f"images of {channels} channels and {pixels} pixels")
    if (bits := stored.get("bits")) not in (None, *DEPTHS):
        raise ValueError(f"images of {bits} bits")
    return Facts(classes, (train, valid), channels, pixels, statistics, bits)


def write(name: str, facts: Facts) -> None:
    """Cache ``facts`` under ``name``; a folder that cannot be written is only logged."""
    path = Path(name)
    try:
        path = cache_folder() / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as part:
            json.dump(asdict(facts), part, indent=1)
        os.replace(part.name, path)  # atomic: other processes never see an incomplete file
    except (OSError, ValueError) as error:
        _log.warning("the cache of mean and std cannot be written, so the next run reads the images again (%s)", error)
