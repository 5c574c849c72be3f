"""Experiments: runs that differ only in their seed, read from the tables of runs."""

import csv
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fullbatch.results.columns import is_setting
from fullbatch.training.tables import read_table

TABLES = "table_fb_*_runs.csv"


@dataclass
class Experiment:
    """Runs of one name and configuration, one per seed.

    Args:
        name: name of the runs, without a final ``_<seed>``.
        data: name of the data set.
        settings: the settings that the table has columns for, as text.
        configuration: hash of all settings.
        runs: seed -> row, for runs that ended regularly.
        diverged: seeds of the runs that diverged.
        num_repeated: number of rows that repeat the seed of an earlier one; the last row counts.
        num_different: number of these rows that had another accuracy.
    """

    name: str
    data: str
    settings: dict[str, str]
    configuration: str = ""
    runs: dict[str, Mapping[str, str]] = field(default_factory=dict)
    diverged: list[str] = field(default_factory=list)
    num_repeated: int = 0
    num_different: int = 0

    @property
    def title(self) -> tuple[str, str, str]:
        """Name, data and model."""
        return self.name, self.data, self.settings.get("model", "")

    def values(self, column: str) -> list[float]:
        """Return the values of a column for the runs that ended regularly."""
        return [float(row[column]) for row in self.runs.values() if row.get(column)]

    def add(self, row: Mapping[str, str]) -> None:
        """Add a run; it replaces an earlier one with the same seed."""
        seed = row["seed"]
        earlier = self.runs.pop(seed, None)
        if earlier is not None or seed in self.diverged:
            self.num_repeated += 1
            self.num_different += earlier is not None and earlier["valid_acc"] != row["valid_acc"]
            self.diverged = [other for other in self.diverged if other != seed]
        if row["status"].startswith("diverged"):
            self.diverged.append(seed)
        else:
            self.runs[seed] = row


def find_tables(path: Path) -> list[Path]:
    """Return the tables of runs at a path: a table, or those in a folder of tables or in a launch folder."""
    if path.is_file():
        return [path]
    tables = sorted(path.glob(TABLES)) or sorted((path / "tables").glob(TABLES))
    if not tables:
        raise ValueError(f"{path}: no tables of runs here; runs write tables/{TABLES} into their launch folder")
    return tables


def read_experiments(tables: Iterable[Path]) -> list[Experiment]:
    """Group the runs of all tables, in the order of their first rows; ``ValueError`` if a file is not such a table."""
    experiments: dict[tuple[str, ...], Experiment] = {}
    for path in tables:
        for row in _read_runs(path):
            name = experiment_name(row["name"], row["seed"])
            settings = {key: value for key, value in row.items() if is_setting(key)}
            configuration = row.get("configuration") or repr(sorted(settings.items()))
            data = path.name.removeprefix("table_fb_").removesuffix("_runs.csv")
            new = Experiment(name, data, settings, row.get("configuration") or "unknown")
            experiments.setdefault((*new.title, configuration), new).add(row)
    return list(experiments.values())


def experiment_name(name: str, seed: str) -> str:
    """Return the name of a run without a final ``_<seed>``."""
    return name.removesuffix(f"_{seed}") or name


def format_mean(values: Sequence[float], scale: float = 1.0) -> str:
    """Return 'mean ± standard deviation' (n - 1); the value alone if there is one, and '' if there is none."""
    if not values:
        return ""
    mean = f"{scale * statistics.mean(values):.2f}"
    return f"{mean} ± {scale * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def distinguishing_settings(experiments: Sequence[Experiment]) -> list[list[str]]:
    """Return for each experiment the settings that distinguish it from others of the same name, data and model."""
    result = []
    for one in experiments:
        similar = [other for other in experiments if other.title == one.title]
        keys = [key for key in one.settings if len({other.settings.get(key, "") for other in similar}) > 1]
        texts = [f"{key} {one.settings[key] or 'none'}" for key in keys]
        if any(other is not one and other.settings == one.settings for other in similar):
            texts.append(f"configuration {one.configuration}")
        result.append(texts)
    return result


def _read_runs(path: Path) -> list[Mapping[str, str]]:
    try:
        rows = read_table(path)
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of runs ({error})") from error
    if not rows or not re.fullmatch(r"table_fb_.+_runs\.csv", path.name):
        raise ValueError(f"{path}: not a table of runs (these are named table_fb_<data>_runs.csv and have rows)")
    for column in ("name", "status", "seed", "valid_acc"):
        if column not in rows[0]:
            raise ValueError(f"{path}: not a table of runs (without a column {column})")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"{path}: damaged: row {number} has another number of cells than the first line")
        for column in ("valid_acc", "train_acc"):
            try:
                float(row.get(column) or 0)
            except ValueError:
                raise ValueError(f"{path}: damaged: {column} in row {number} is {row[column]!r}") from None
    return rows
