"""What run folders hold: rows of steps, configurations, tables of landscapes."""

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


@dataclass(frozen=True)
class Recorded:
    """A run.

    Args:
        name: of the run, with the folder where several have one name.
        folder: of the run.
        rows: of its steps; without what was not measured.
        settings: dotted key -> value as text, of its ``config.yaml``; empty without that.
    """

    name: str
    folder: Path
    rows: Sequence[Row]
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Landscape:
    """A table of a loss landscape: coordinates of the axes, and values of the shape (x, y), nan where unknown."""

    name: str
    xs: np.ndarray
    ys: np.ndarray
    values: dict[str, np.ndarray]


def tables_below(folder: Path, pattern: str) -> list[Path]:
    """Return the tables in a folder, else those in the folders below it."""
    return sorted(folder.glob(pattern)) or sorted(folder.rglob(pattern))


def files_of(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Return the tables of steps and of landscapes, each once.

    Raises:
        ValueError: for what is no folder, and for folders without either.
    """
    steps: list[Path] = []
    landscapes: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder; give folders of runs, outputs/<date>/<time>")
        found = tables_below(folder, STEPS), tables_below(folder, LANDSCAPES)
        if not any(found):
            raise ValueError(f"{folder}: no run here; the folder of one holds {STEPS} or {LANDSCAPES}")
        steps += found[0]
        landscapes += found[1]
    return list(dict.fromkeys(steps)), list(dict.fromkeys(landscapes))


def run_name(path: Path) -> str:
    """Return the name of the run that a table of steps is of."""
    before, after = STEPS.split("*")
    return path.name.removeprefix(before).removesuffix(after)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return a name for each table of steps; with the folder where one name occurs several times."""
    names = [run_name(path) for path in paths]
    return [
        name if names.count(name) == 1 else f"{name} ({path.parent.parent.name}/{path.parent.name})"
        for name, path in zip(names, paths, strict=True)
    ]


def read_rows(path: Path) -> list[Row]:
    """Read a table of steps; ``ValueError`` for what is none."""
    try:
        rows = [{key: float(cell) for key, cell in row.items() if cell} for row in read_table(path)]
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of the steps of a run ({error})") from error
    if not rows or any("step" not in row for row in rows):
        raise ValueError(f"{path}: not a table of the steps of a run (it has no {'column step' if rows else 'rows'})")
    return rows


def read_landscape(path: Path) -> Landscape:
    """Read what ``fullbatch.landscape.export.write_csv`` has written; ``ValueError`` for what is none."""
    try:
        rows = [{key: float(cell or math.nan) for key, cell in row.items()} for row in read_table(path)]
        xs, ys = (np.unique([row[axis] for row in rows]) for axis in ("x", "y"))
        shape = len(xs), len(ys)
        names = [name for name in rows[0] if name not in ("x", "y")]
        ordered = sorted(rows, key=lambda row: (row["x"], row["y"]))
        values = {name: np.array([row[name] for row in ordered]).reshape(shape) for name in names}
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of a loss landscape ({error})") from error
    if "loss" not in values:
        raise ValueError(f"{path}: not a table of a loss landscape (it has no column loss)")
    return Landscape(path.stem.removeprefix("landscape_"), xs, ys, values)


def differing(runs: Sequence[Recorded]) -> list[str]:
    """Return the keys in which the settings of runs differ; a key that a run lacks is a blank."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({run.settings.get(key, "") for run in runs}) > 1]
