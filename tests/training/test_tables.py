"""Tables: cells keep their columns, tables of runs merge columns and lose no row."""

import csv
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fullbatch.runtime.locks import hold_lock
from fullbatch.runtime.stop_requests import InterruptedWork, interruption
from fullbatch.training import tables
from fullbatch.training.tables import STEP_COLUMNS, ConvergenceTable, add_run, read_table


def test_a_row_never_shifts(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = ConvergenceTable(path, [{"step": 1, "lr": 0.5}])
    table.append({"step": 2, "valid_acc": 0.25})
    table.append({"step": 3, "sharpness": 7.0, "lr": 0.125})
    table.append({"lr": 0.0625, "step": 4})
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["step"], row["lr"], row["valid_acc"], row["sharpness"]) for row in rows] == [
        ("1", "0.5", "", ""),
        ("2", "", "0.25", ""),
        ("3", "0.125", "", "7.0"),
        ("4", "0.0625", "", ""),
    ]
    assert list(rows[0]) == [*STEP_COLUMNS, "sharpness"]


def test_runs_with_other_keys_share_a_table(tmp_path: Path) -> None:
    path = tmp_path / "tables" / "runs.csv"
    add_run(path, {"name": "a", "lr": 0.1})
    add_run(path, {"name": "b", "text": "with\ttab and\nnewline", "lr": 0.2})
    add_run(path, {"eps": 1e-8, "name": "c"})
    assert read_table(path) == [
        {"name": "a", "lr": "0.1", "text": "", "eps": ""},
        {"name": "b", "lr": "0.2", "text": "with\ttab and\nnewline", "eps": ""},
        {"name": "c", "lr": "", "text": "", "eps": "1e-08"},
    ]


def test_a_row_that_is_there_is_not_added_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    for row in ({"name": "a", "seed": 1}, {"name": "a", "seed": 1}, {"name": "a", "seed": 2}, {"name": "b", "seed": 1}):
        add_run(path, row, unless=("name", "seed"))
    assert [(row["name"], row["seed"]) for row in read_table(path)] == [("a", "1"), ("a", "2"), ("b", "1")]
    add_run(path, {"name": "a", "seed": 2, "configuration": "abc"}, unless=("name", "seed", "configuration"))
    assert len(read_table(path)) == 3  # rows of older versions have no such column
    add_run(path, {"name": "a", "seed": 2})
    assert len(read_table(path)) == 4


def test_concurrent_runs_lose_no_row(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: add_run(tmp_path / "runs.csv", {"name": str(n), f"key{n % 3}": n}), range(40)))
    assert sorted(int(row["name"]) for row in read_table(tmp_path / "runs.csv")) == list(range(40))


def test_waiting_for_the_table_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lock = tmp_path / "runs.csv", tmp_path / ".runs.csv.lock"
    add_run(path, {"name": "a"})
    with hold_lock(lock):
        monkeypatch.setattr(tables, "SECONDS_TO_WAIT", 0.1)
        with pytest.raises(ValueError, match=re.escape(f"if there is none, remove {lock}")) as refused:
            add_run(path, {"name": "b"})
        assert str(refused.value).startswith(f"{path}: ")
        monkeypatch.setattr(tables, "SECONDS_TO_WAIT", 60)
        with interruption() as caught:
            caught.signal = signal.SIGTERM
            with pytest.raises(InterruptedWork, match="stopped while waiting"):
                add_run(path, {"name": "b"})
    add_run(path, {"name": "b"})
    assert [row["name"] for row in read_table(path)] == ["a", "b"]
