"""Reading run folders: tables of steps, configurations, tables of landscapes."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fullbatch.training.state import Row
from fullbatch.training.tables import read_table

STEPS = "table_*_convergence_results.csv"
LANDSCAPES = "landscape_*.csv"
_ERRORS = (ValueError, TypeError, AttributeError, KeyError, IndexError, csv.Error)  # of tables with other content


@dataclass(frozen=True)
class RecordedRun:
    """A run, read from its folder.

    Args:
        name: name of the run, with the folder if several runs have the same name.
        folder: folder of the run.
        rows: rows of its steps, without empty cells.
        settings: dotted key -> value as text, from ``config.yaml``; empty without that file.
    """

    name: str
    folder: Path
    rows: Sequence[Row]
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LandscapeTable:
    """The table of a loss landscape: coordinates [X] and [Y], and column -> values [X, Y], nan where unknown."""

    name: str
    xs: np.ndarray
    ys: np.ndarray
    values: dict[str, np.ndarray]


def find_run_tables(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Return the tables of steps and the tables of landscapes in the folders, or in all folders below them.

    Raises:
        ValueError: A folder does not exist or contains neither.
    """
    steps: dict[Path, None] = {}
    landscapes: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder; run folders are outputs/<date>/<time>")
        tables = [sorted(folder.glob(name)) or sorted(folder.rglob(name)) for name in (STEPS, LANDSCAPES)]
        if not any(tables):
            raise ValueError(f"{folder}: no run here; run folders contain {STEPS} or {LANDSCAPES}")
        steps |= dict.fromkeys(tables[0])
        landscapes |= dict.fromkeys(tables[1])
    return list(steps), list(landscapes)


def run_names(paths: Sequence[Path]) -> list[str]:
    """Return the names of the runs of these tables of steps, with the folder if several have the same name."""
    prefix, suffix = STEPS.split("*")
    names = [path.name.removeprefix(prefix).removesuffix(suffix) for path in paths]
    return [
        name if names.count(name) == 1 else f"{name} ({path.parent.parent.name}/{path.parent.name})"
        for name, path in zip(names, paths, strict=True)
    ]


def read_rows(path: Path, *, may_be_empty: bool = False) -> list[Row]:
    """Read a table of steps; ``ValueError`` if the file is not one, or has no rows and must have some."""
    try:
        rows = [{key: float(cell) for key, cell in row.items() if cell} for row in read_table(path)]
    except _ERRORS as error:
        raise ValueError(f"{path}: not a table of the steps of a run ({error})") from error
    if not (rows or may_be_empty) or any("step" not in row for row in rows):
        raise ValueError(f"{path}: not a table of the steps of a run (it has no {'column step' if rows else 'rows'})")
    return rows


def read_landscape(path: Path) -> LandscapeTable:
    """Read a table written by ``fullbatch.landscape.export.write_csv``; ``ValueError`` if the file is not one."""
    try:
        rows = [{key: float(cell or math.nan) for key, cell in row.items()} for row in read_table(path)]
        xs, ys = (np.unique([row[axis] for row in rows]) for axis in ("x", "y"))
        shape = len(xs), len(ys)
        names = [name for name in rows[0] if name not in ("x", "y")]
        ordered = sorted(rows, key=lambda row: (row["x"], row["y"]))
        values = {name: np.array([row[name] for row in ordered]).reshape(shape) for name in names}
    except _ERRORS as error:
        raise ValueError(f"{path}: not a table of a loss landscape ({error})") from error
    if "loss" not in values:
        raise ValueError(f"{path}: not a table of a loss landscape (it has no column loss)")
    return LandscapeTable(path.stem.removeprefix("landscape_"), xs, ys, values)


def differing_keys(runs: Sequence[RecordedRun]) -> list[str]:
    """Return the keys in which the settings of the runs differ; a missing key counts as a blank."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({run.settings.get(key, "") for run in runs}) > 1]
