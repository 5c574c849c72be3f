"""Published results, to compare runs of the same name and settings with.

``published.csv`` contains the validation accuracies in percent, mean and standard deviation, and the settings of each
experiment. They are quoted from memory of the first table of arXiv 2109.14119 and have not been verified.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fullbatch.training.tables import read_table

SOURCE = "published: unverified, quoted from memory of the first table of arXiv 2109.14119"
_NOT_SETTINGS = ("experiment", "name", "valid_acc", "deviation")


@dataclass(frozen=True)
class PublishedResult:
    """Validation accuracy of a published experiment in percent, and the settings in which a run differs from it."""

    experiment: str
    accuracy: float
    deviation: float
    differences: tuple[str, ...]


def find_published(name: str, data: str, settings: Mapping[str, str]) -> PublishedResult | None:
    """Return the published experiment of this name, compared with the settings of a run, or None."""
    row = published_rows().get(name)
    if row is None:
        return None
    given = {**settings, "data": data}
    differences = tuple(
        f"{key} {given.get(key) or 'unknown'}, there {row[key] or 'none'}"
        for key in row
        if key not in _NOT_SETTINGS and not equal_cells(given.get(key, ""), row[key])
    )
    return PublishedResult(row["experiment"], float(row["valid_acc"]), float(row["deviation"]), differences)


def equal_cells(one: str, other: str) -> bool:
    """Return whether two cells of tables have the same value, as numbers or as text in any case."""
    try:
        return float(one) == float(other)
    except ValueError:
        return one.lower() == other.lower()


@cache
def published_rows() -> dict[str, dict[str, str]]:
    """Return the rows of ``published.csv`` by name."""
    return {row["name"]: dict(row) for row in read_table(Path(__file__).with_name("published.csv"))}
