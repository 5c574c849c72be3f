"""From rows of the tables of runs to experiments: runs that differ in nothing but their seed."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fullbatch.training.tables import read_table

TABLES = "table_fb_*_runs.csv"
RESULTS = frozenset(
    "status valid_acc train_acc valid_loss train_loss full_loss grad_norm param_norm valid_acc_at_min_loss max_val_acc "
    "avg_step_time total_time evaluations loss_evaluations steps_taken searches_failed".split()
)
"""Columns that say how a run went; the others say what it was."""
_NAMES = frozenset("name seed configuration folder template_name".split())


@dataclass
class Experiment:
    """Runs of one configuration and name, one a seed.

    Args:
        name: of the runs; an ending ``_<seed>`` is left out.
        data: name of the data set.
        settings: what the runs have in common, as text.
        configuration: its hash, which counts settings that the table has no columns for, too.
        runs: seed -> row, of the runs that came to their end.
        diverged: seeds of the runs that diverged.
        repeated: how many rows were those of runs that had been run before; the last one counts.
        differing: how many of them had another accuracy, which on a CPU is none.
    """

    name: str
    data: str
    settings: dict[str, str]
    configuration: str = ""
    runs: dict[str, Mapping[str, str]] = field(default_factory=dict)
    diverged: list[str] = field(default_factory=list)
    repeated: int = 0
    differing: int = 0

    def values(self, column: str) -> list[float]:
        """Return a column of the runs that came to their end."""
        return [float(row[column]) for row in self.runs.values() if row.get(column)]


def tables_at(place: Path) -> list[Path]:
    """Return the tables of runs at a place: a table, a folder of tables, or a launch folder. ``ValueError`` if none."""
    if place.is_file():
        return [place]
    found = sorted(place.glob(TABLES)) or sorted((place / "tables").glob(TABLES))
    if not found:
        raise ValueError(f"{place}: no tables of runs here; they are tables/{TABLES} where runs are launched")
    return found


def experiments(tables: Iterable[Path]) -> list[Experiment]:
    """Group the runs of all tables, in the order of their first rows; ``ValueError`` for what is no table of runs."""
    found: dict[tuple[str, ...], Experiment] = {}
    for path in tables:
        for row in _rows(path):
            name = experiment_name(row["name"], row["seed"])
            settings = {key: value for key, value in row.items() if key not in RESULTS | _NAMES}
            configuration = row.get("configuration") or repr(sorted(settings.items()))
            data = path.name.removeprefix("table_fb_").removesuffix("_runs.csv")
            key = (data, settings.get("model", ""), name, configuration)
            _add(found.setdefault(key, Experiment(name, data, settings, row.get("configuration") or "unknown")), row)
    return list(found.values())


def experiment_name(name: str, seed: str) -> str:
    """Return the name of a run without its seed, where it ends in that."""
    return name.removesuffix(f"_{seed}") or name


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Return 'mean ± standard deviation' (of a sample, n - 1), of one value that value, of none nothing."""
    if not values:
        return ""
    mean = f"{scale * statistics.mean(values):.2f}"
    return f"{mean} ± {scale * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def telling(found: Sequence[Experiment]) -> dict[int, list[str]]:
    """Return, by the place in ``found``, the settings that tell apart experiments of the same name, data and model."""
    told: dict[int, list[str]] = {}
    for number, one in enumerate(found):
        alike = [other for other in found if _label(other) == _label(one)]
        keys = [key for key in one.settings if len({other.settings.get(key, "") for other in alike}) > 1]
        told[number] = [f"{key} {one.settings[key] or 'none'}" for key in keys]
        if any(other is not one and other.settings == one.settings for other in alike):
            told[number].append(f"configuration {one.configuration}")
    return told


def _label(one: Experiment) -> tuple[str, str, str]:
    return one.name, one.data, one.settings.get("model", "")


def _rows(path: Path) -> list[Mapping[str, str]]:
    try:
        rows = read_table(path)
    except (UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: not a table of runs ({error})") from error
    missing = [column for column in ("name", "status", "seed", "valid_acc") if rows and column not in rows[0]]
    if missing or not rows or not re.fullmatch(r"table_fb_.+_runs\.csv", path.name):
        reason = f"without a column {missing[0]}" if missing else "it is called table_fb_<data>_runs.csv, and has rows"
        raise ValueError(f"{path}: not a table of runs ({reason})")
    return rows


def _add(one: Experiment, row: Mapping[str, str]) -> None:
    seed, before = row["seed"], one.runs.pop(row["seed"], None)
    if before is not None or seed in one.diverged:
        one.repeated += 1
        one.differing += before is not None and before["valid_acc"] != row["valid_acc"]
        one.diverged = [other for other in one.diverged if other != seed]
    if row["status"].startswith("diverged"):
        one.diverged.append(seed)
    else:
        one.runs[seed] = row
