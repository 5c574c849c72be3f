"""What an analysis leaves in the run folder beside the table of the steps."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fullbatch.analysis.probes import Observation
from fullbatch.runtime.files import naming, write_atomically
from fullbatch.training.state import Row

NOTE_COLUMNS = ("step", "quantity", "name", "value")


class Notes:
    """A tab-separated file of what is more than a number a step: a row a value.

    It is begun with the first note. What an earlier process has written there about steps after ``step`` is left out.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.reader(file, delimiter="\t") if row and row[0].isdigit()]
            write_atomically(path, _lines([NOTE_COLUMNS, *(row for row in rows if int(row[0]) <= step)]).encode())

    def __call__(self, step: int, quantity: str, names: Sequence[str], values: Sequence[float]) -> None:
        """Add the values of a quantity."""
        rows = [(step, quantity, name, value) for name, value in zip(names, values, strict=True)]
        head = [] if self.path.exists() else [NOTE_COLUMNS]
        with naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(_lines([*head, *rows]))


def _lines(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_columns(path: Path, columns: Mapping[str, str]) -> None:
    """Say in a JSON file what each column of the analysis holds."""
    write_atomically(path, (json.dumps(dict(columns), indent=2) + "\n").encode())


@dataclass(frozen=True)
class SavedModels:
    """Saves the weights as ``<folder>/step_<number>.pth``, a state dict: the points of a trajectory."""

    folder: Path
    columns: dict[str, str] = field(default_factory=dict)

    def __call__(self, seen: Observation) -> Row:
        """Save, and return nothing."""
        buffer = io.BytesIO()
        torch.save(seen.model.state_dict(), buffer)
        write_atomically(self.folder / f"step_{seen.step:06d}.pth", buffer.getbuffer())
        return {}
