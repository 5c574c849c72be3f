"""Published results, for runs of the same name and settings to stand beside.

``published.csv`` holds the validation accuracies in percent, mean and standard deviation, with the settings that a run
must share with the experiment. They are quoted from memory of the first table of arXiv 2109.14119, and not verified.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fullbatch.training.tables import read_table

SOURCE = "published: unverified, quoted from memory of the first table of arXiv 2109.14119"
_FILE = Path(__file__).with_name("published.csv")
_NOT_SETTINGS = ("experiment", "name", "valid_acc", "deviation")


@dataclass(frozen=True)
class Published:
    """A published experiment: validation accuracy in percent, and in which settings a run differs from it."""

    experiment: str
    accuracy: float
    deviation: float
    differences: tuple[str, ...]


def published(name: str, data: str, settings: Mapping[str, str]) -> Published | None:
    """Return the published experiment of this name, compared with the settings of a run; None where there is none."""
    row = _rows().get(name)
    if row is None:
        return None
    given = {**settings, "data": data}
    differing = tuple(
        f"{key} {given.get(key) or 'unknown'}, there {row[key] or 'none'}"
        for key in row
        if key not in _NOT_SETTINGS and not same(given.get(key, ""), row[key])
    )
    return Published(row["experiment"], float(row["valid_acc"]), float(row["deviation"]), differing)


def same(one: str, other: str) -> bool:
    """Return whether two cells say the same; numbers may be written differently."""
    try:
        return float(one) == float(other)
    except ValueError:
        return one.lower() == other.lower()


@cache
def _rows() -> dict[str, dict[str, str]]:
    return {row["name"]: dict(row) for row in read_table(_FILE)}
