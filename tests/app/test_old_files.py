"""Files that the code before the new layout wrote are read, and what was begun there goes on (see `old_files`)."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import ROOT
from old_files import GOLDEN, RUNS, SWEEP, frozen_line, plane_line, run_line
from running import rows_of, run_in_process
from states import TIMES, assert_equal_states, without_times

from fullbatch.landscape.surface import PointEvaluator
from fullbatch.training.checkpoint import load_checkpoint

LANDSCAPE = ROOT / "crunch_loss_landscape.py"
NUM_GRADIENTS = {"momentum": 2 * 3, "search": 2 * 3, "inside": 2 + 6}
"""Of the three blocks, that are left to compute: two steps; one evaluation per search, as step 2 has computed the first
point of step 3; with a regularizer, which needs two, one block of step 3 and all of step 4."""


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old launch folder."""
    folder = tmp_path / "launch"
    shutil.copytree(GOLDEN, folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def counted_calls(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[None]:
    """Return a list that gets an entry whenever the function is called."""
    function, calls = getattr(owner, name), []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


def numbers(path: Path) -> list[dict[str, float]]:
    """Return the rows of a table of steps, without times and empty cells."""
    return [{key: float(value) for key, value in row.items() if value and key not in TIMES} for row in rows_of(path)]


def assert_close(rows: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Processors round in different ways; in double precision this shows in late digits only."""
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_from_its_checkpoint(launch: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    begun = load_checkpoint(launch / "checkpoints" / f"{name}.pth")["state"]
    assert (begun["inside"] is not None) == (name == "inside")
    assert ("known" in begun["optimizer"]["state"]) == (name == "search")
    gradients = counted_calls(monkeypatch, torch.autograd, "grad")
    assert run_in_process(monkeypatch, launch, *run_line(name), "hydra.run.dir=continued") == 0
    assert len(gradients) == NUM_GRADIENTS[name]
    assert run_in_process(monkeypatch, launch, *run_line(name, "whole"), "hydra.run.dir=whole") == 0
    continued, whole = (
        numbers(launch / folder / f"table_{name}_convergence_results.csv") for folder in ("continued", "whole")
    )
    expected = numbers(launch / "expected" / f"{name}.csv")
    assert_close(whole, expected)
    assert_close(continued, expected)
    if whole[:2] == expected[:2]:  # this processor rounds like the one that took the first steps
        assert continued == whole
        states = [load_checkpoint(launch / "checkpoints" / f"{file}.pth")["state"] for file in (name, "whole")]
        assert_equal_states(*({**state, "rows": without_times(state["rows"])} for state in states))


def test_a_sweep_goes_on_from_its_ledger(launch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finished job is the same job; what was stopped goes on; what diverged may end otherwise with new code."""
    begun = load_checkpoint(launch / "outputs" / "2" / "checkpoint.pth")["state"]["rows"]
    assert run_in_process(monkeypatch, launch, *SWEEP, "hydra.sweep.dir=again") == 3
    with closing(sqlite3.connect(launch / "tables" / "ledger.sqlite")) as ledger:
        attempts = ledger.execute("SELECT job, overrides, state FROM attempts ORDER BY number").fetchall()
    jobs = {json.loads(overrides)[-2]: job for job, overrides, _ in attempts}
    states = {rate: [state for job, _, state in attempts if job == jobs[rate]] for rate in jobs}
    assert states == {
        "hyp.optim.lr=0.05": ["finished"],
        "hyp.optim.lr=3e+38": ["diverged", "diverged"],
        "hyp.optim.lr=0.1": ["interrupted", "finished"],
        "hyp.optim.lr=0.2": ["finished"],
    }
    assert sum(map(len, states.values())) == len(attempts)  # one job for each learning rate
    table = rows_of(launch / "tables" / "table_fb_digits_runs.csv")
    assert [row["optim.lr"] for row in table] == ["0.05", "3e+38", "3e+38", "0.1", "0.2"]
    assert table[1]["configuration"] == table[2]["configuration"]
    (path,) = launch.glob("again/2/table_sweep_convergence_results.csv")
    assert_close(numbers(path), numbers(launch / "expected" / "sweep.csv"))
    assert [float(row["train_time"]) for row in rows_of(path)[:2]] == [row["train_time"] for row in begun]


def test_a_database_of_frozen_copies_is_read_and_not_written(launch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (database,) = launch.glob("lmdb/*/data.mdb")
    before = database.stat().st_mtime_ns
    assert run_in_process(monkeypatch, launch, *frozen_line(), "hydra.run.dir=run") == 0
    assert database.stat().st_mtime_ns == before
    assert_close(
        numbers(launch / "run" / "table_frozen_convergence_results.csv"), numbers(launch / "expected" / "frozen.csv")
    )


def test_a_landscape_goes_on_from_its_database(launch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = counted_calls(monkeypatch, PointEvaluator, "__call__")
    assert (
        run_in_process(monkeypatch, launch, *plane_line(5), "viz.formats=[csv]", "hydra.run.dir=run", script=LANDSCAPE)
        == 0
    )
    assert len(points) == 5 * 5 - 3 * 3
    assert_close(numbers(launch / "run" / "landscape_plane.csv"), numbers(launch / "expected" / "plane.csv"))
