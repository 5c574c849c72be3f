"""Files of the analysis in the run folder beside the table of the steps."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fullbatch.analysis.probes import Observation
from fullbatch.runtime.archives import write_archive
from fullbatch.runtime.files import naming, write_atomically
from fullbatch.training.state import Row

NOTE_COLUMNS = ("step", "quantity", "name", "value")


class Notes:
    """A tab-separated file of quantities with several values per step, one row per value.

    It is created by the first note. Rows that an earlier process wrote about steps after ``step`` are removed.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.reader(file, delimiter="\t") if row and row[0].isdigit()]
            write_atomically(path, _lines([NOTE_COLUMNS, *(row for row in rows if int(row[0]) <= step)]).encode())

    def __call__(self, step: int, quantity: str, names: Sequence[str], values: Sequence[float]) -> None:
        """Append the values of a quantity."""
        rows = [(step, quantity, name, value) for name, value in zip(names, values, strict=True)]
        header = [] if self.path.exists() else [NOTE_COLUMNS]
        with naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(_lines([*header, *rows]))


def _lines(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_columns(path: Path, columns: Mapping[str, str]) -> None:
    """Write the description of each column of the analysis to a JSON file."""
    write_atomically(path, (json.dumps(dict(columns), indent=2) + "\n").encode())


@dataclass(frozen=True)
class SavedModels:
    """Saves state dicts of the model as ``<folder>/step_<number>.pth``, the points of a trajectory."""

    folder: Path
    columns: ClassVar[dict[str, str]] = {}

    def __call__(self, observation: Observation) -> Row:
        """Save the model and return no numbers."""
        write_archive(self.folder / f"step_{observation.step:06d}.pth", observation.model.state_dict())
        return {}
