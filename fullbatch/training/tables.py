"""Tables: one row per step in the run folder, and one row per run in a table that all runs share."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fullbatch.runtime.files import naming, write_atomically
from fullbatch.runtime.locks import hold_lock
from fullbatch.runtime.stop_requests import stop_if_interrupted
from fullbatch.training.state import Row

STEP_COLUMNS = (
    "step train_loss train_acc valid_loss valid_acc lr train_time evaluations loss_evaluations full_loss grad_norm "
    "full_grad_norm update_norm param_norm num_clipped valid_time"
).split()


SECONDS_TO_WAIT = 60.0
"""For the lock of the table of runs."""


class ConvergenceTable:
    """A tab-separated file with one row per step; a value that was not measured is an empty cell."""

    def __init__(self, path: Path, rows: Iterable[Row] = ()) -> None:
        self.path = path
        self._columns = list(STEP_COLUMNS)
        self._rows: list[Mapping[str, Any]] = [*rows]
        self._rewrite()

    def append(self, row: Row) -> None:
        """Add the row of one step, with new columns where it has them."""
        self._rows.append(row)
        if row.keys() - set(self._columns):
            self._rewrite()
            return
        with naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            _writer(file, self._columns).writerow(row)

    def _rewrite(self) -> None:
        for row in self._rows:
            self._columns += [column for column in row if column not in self._columns]
        write_table(self.path, self._columns, self._rows)


def add_run(path: Path, row: Mapping[str, Any], *, unless: Sequence[str] = ()) -> None:
    """Add one row to the table of runs, under a lock and atomically; the columns are the union of those of all rows.

    With ``unless``, the row is not added if the table has a row with the same values in these columns.

    Raises:
        ValueError: another process holds the lock for too long.
        InterruptedWork: a signal to stop arrived while the lock was waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    refusal = f"{path}: locked by another process for {SECONDS_TO_WAIT:.0f} s; if there is none, remove {lock}"
    poll = partial(stop_if_interrupted, f"{path}: stopped while waiting for another process, which holds {lock}")
    with hold_lock(lock, refusal, poll=poll, timeout=SECONDS_TO_WAIT):
        rows: list[Mapping[str, Any]] = read_table(path) if path.exists() else []
        if unless and any(all(old.get(key, "") in ("", str(row[key])) for key in unless) for old in rows):
            return
        columns = list(dict.fromkeys(column for some_row in (*rows, row) for column in some_row))
        write_table(path, columns, [*rows, row])


def read_table(path: Path) -> list[Mapping[str, Any]]:
    """Read a table back as text; an empty cell is an empty string."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a tab-separated table atomically."""
    text = io.StringIO(newline="")
    writer = _writer(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _writer(file: Any, columns: Sequence[str]) -> "csv.DictWriter[str]":
    return csv.DictWriter(file, columns, delimiter="\t", restval="", lineterminator="\n")
