"""Sweeps that are started again: finished jobs are skipped, interrupted ones continue bitwise; none runs twice."""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from composing import ROOT
from running import SCRIPT, Script, rows_of, run_in_process, start
from states import assert_equal_states

from fullbatch.app.ledger_entry import LedgerEntry
from fullbatch.cli.status import main as status
from fullbatch.results.ledger import Attempt, JobDescription, Ledger, State, SweepPosition
from fullbatch.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

TINY = [
    *("data=digits", "data.size=60", "data.valid_size=40", "data.batch_size=20", "model=linear", "hyp=fb1"),
    *("hyp.steps=4", "hyp.warmup=1", "impl.device=cpu", "impl.threads=1"),
]
SWEEP = ["-m", *TINY, "hyp.optim.lr=0.05,0.1", "seed=1,2"]
TABLE = "tables/table_fb_digits_runs.csv"
TIMES = ("avg_step_time", "total_time", "samples_per_second", "peak_share", "folder")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    return lambda *arguments: run_in_process(monkeypatch, tmp_path, *arguments)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launch folder of a sweep that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run_in_process(monkeypatch, folder, *SWEEP) == 0
    return folder


def ledger(folder: Path) -> list[Attempt]:
    return Ledger(folder / "tables" / "ledger.sqlite").attempts()


def states(folder: Path) -> Counter[State]:
    return Counter(attempt.state for attempt in ledger(folder))


def results(folder: Path) -> list[dict[str, str]]:
    """The rows of the table of runs, but for times, in an order of their own."""
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in rows_of(folder / TABLE)]
    return sorted(rows, key=lambda row: (row["optim.lr"], row["seed"]))


def weights(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The final state of each finished job, by its overrides and seed."""
    states_of_jobs = {}
    for attempt in ledger(folder):
        if attempt.state is State.FINISHED:
            checkpoint = load_checkpoint(attempt.folder / "checkpoint.pth")
            state = {key: value for key, value in checkpoint["state"].items() if key != "rng"}  # which nothing uses
            states_of_jobs[str(attempt.overrides), checkpoint["seed"]] = state
    return states_of_jobs


def killed(folder: Path, count: int, *arguments: str) -> None:
    """Run until a kill after the ``count``-th file got its name."""
    command = [sys.executable, str(ROOT / "tests" / "killing.py"), "renamed", str(count), str(SCRIPT), *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert ended.returncode == -9, ended.stderr


def assert_equal_sweeps(one: Path, other: Path) -> None:
    assert results(one) == results(other)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for key, state in ours.items():
        assert_equal_states(state, theirs[key])


def test_a_sweep_killed_half_way_runs_only_what_is_missing(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], undisturbed: Path
) -> None:
    killed(tmp_path, 21, *SWEEP)  # 8 files a job: its records, a table, its steps' checkpoints, its row
    assert states(tmp_path) == {State.FINISHED: 2, State.INTERRUPTED: 1}
    capsys.readouterr()
    assert status([str(tmp_path)]) == 0
    assert "4 jobs: 1 waiting, 1 interrupted, 2 finished" in capsys.readouterr().out
    finished = [attempt for attempt in ledger(tmp_path) if attempt.state is State.FINISHED]
    assert script(*SWEEP) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"finished before, in (\S+) \(", shown) == [str(attempt.folder) for attempt in finished]
    assert len(re.findall("continuing (?:after|inside) step", shown)) == 1
    assert states(tmp_path) == {State.FINISHED: 4, State.INTERRUPTED: 1}
    assert_equal_sweeps(tmp_path, undisturbed)
    (interrupted,) = [attempt for attempt in ledger(tmp_path) if attempt.state is State.INTERRUPTED]
    assert not (interrupted.folder / "checkpoint.pth").exists()  # it has gone where its job went on
    assert script(*SWEEP) == 0  # nothing is left
    assert len(re.findall("this job has finished before", capsys.readouterr().out)) == 4
    assert len(ledger(tmp_path)) == 5
    assert len(results(tmp_path)) == 4


@pytest.mark.soak
def test_a_sweep_killed_anywhere_ends_in_the_same_bits(script: Script, tmp_path: Path, undisturbed: Path) -> None:
    for count in (1, 2, 4, 6, 5, 3):
        killed(tmp_path, count, *SWEEP)
    assert script(*SWEEP) == 0
    assert_equal_sweeps(tmp_path, undisturbed)


@pytest.mark.distributed
def test_two_sweeps_at_once_share_the_jobs(tmp_path: Path) -> None:
    processes = [start(tmp_path, *SWEEP) for _ in range(2)]
    for process in processes:
        shown = process.communicate(timeout=600)[0]
        assert process.returncode == 0, shown
    assert states(tmp_path) == {State.FINISHED: 4}
    assert len(results(tmp_path)) == 4


@pytest.mark.distributed
def test_jobs_in_processes_of_joblib(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hyp.optim.lr=0.1,1e30", "seed=1,2"]
    process = start(tmp_path, "-m", *TINY, *parallel, program=("-m", "fullbatch", "train"))
    shown = process.communicate(timeout=600)[0]
    assert process.returncode == 3, shown
    assert "Traceback" not in shown
    assert states(tmp_path) == {State.FINISHED: 2, State.DIVERGED: 2}
    assert len({attempt.process for attempt in ledger(tmp_path)} - {process.pid}) >= 1
    (record,) = {path.read_text() for path in (tmp_path / "outputs").glob("*/*/0/run.json")}
    assert "hydra/launcher=joblib" in json.loads(record)["command"]


def test_what_diverged_is_skipped_until_something_changes(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverging = ["-m", *TINY, "hyp.optim.lr=1e30", "seed=1"]
    assert script(*diverging) == 3
    capsys.readouterr()
    assert script(*diverging) == 3
    assert re.search(r"this job diverged before, in \S+ \(step \d is not finite", capsys.readouterr().err)
    assert states(tmp_path) == {State.DIVERGED: 1}
    assert script(*diverging, "impl.memory=channels_last") == 3
    assert states(tmp_path) == {State.DIVERGED: 2}
    assert len(rows_of(tmp_path / TABLE)) == 2


def test_what_failed_is_tried_again(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["-m", *TINY, "model=import", "model.target=my_models:build", "seed=1,2"]
    assert script(*own) == 2
    assert states(tmp_path) == {State.FAILED: 2}
    capsys.readouterr()
    assert status([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "2 jobs: 2 failed" in shown
    assert "my_models" in shown
    model = "return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))"
    (tmp_path / "my_models.py").write_text(f"import torch\ndef build(channels, classes):\n    {model}\n")
    assert script(*own) == 0
    assert states(tmp_path) == {State.FAILED: 2, State.FINISHED: 2}


def test_a_run_by_hand_is_recorded_and_never_skipped(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert script(*TINY, "seed=1") == 0
    assert states(tmp_path) == {State.FINISHED: 2}
    assert len(rows_of(tmp_path / TABLE)) == 2
    assert script(*TINY, "impl.device=tpu") == 2
    assert script(*TINY, "dryrun=True") == 0
    assert len(ledger(tmp_path)) == 2
    capsys.readouterr()
    assert script("-m", *TINY, "seed=1,2", "impl.validate_every_nth_step=3") == 0  # the first has been done by hand
    assert len(re.findall("this job has finished before", capsys.readouterr().out)) == 1
    assert states(tmp_path) == {State.FINISHED: 3}


DYING = """
import fcntl, os, sys, time; from pathlib import Path
from fullbatch.results.ledger import *
ledger, folder = Path(sys.argv[1]), Path(sys.argv[2])
Ledger(ledger).begin(JobDescription("j", "k", "mine", "digits", (), 4, "c"), folder)
reader, writer = os.pipe()
if os.fork() == 0:  # a child that has the lock of its parent, as long as it lives
    file = lease_of(folder).open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    os.write(writer, b"now")
    time.sleep(3)
else:
    os.read(reader, 3)
    os.kill(os.getpid(), 9)
"""


def test_the_children_of_a_killed_process_are_waited_for(tmp_path: Path) -> None:
    path, first, second = tmp_path / "tables" / "ledger.sqlite", tmp_path / "0", tmp_path / "1"
    first.mkdir()
    second.mkdir()
    subprocess.run([sys.executable, "-c", DYING, str(path), str(first)], check=False)
    what = JobDescription("j", "k", "mine", "digits", (), 4, "c")
    assert ledger(tmp_path)[0].state is State.RUNNING
    with LedgerEntry(Ledger(path), what, second, SweepPosition(tmp_path, 1)) as entry:
        assert entry.already_done is None
        assert entry.was_unfinished
        entry.end(State.FINISHED)
    assert [attempt.state for attempt in ledger(tmp_path)] == [State.INTERRUPTED, State.FINISHED]
    with LedgerEntry(Ledger(path), what, second, SweepPosition(tmp_path, 1)) as entry:
        assert entry.already_done is not None


def test_a_ledger_that_cannot_be_written_at_the_end_costs_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tables" / "ledger.sqlite"
    with LedgerEntry(Ledger(path), JobDescription("j", "k", "mine", "digits", (), 4, "c"), tmp_path, None) as entry:
        entry.start()
        path.write_bytes(b"a letter" * 1000)
        entry.end(State.FINISHED)
    assert "left untouched: move it away" in caplog.text
    assert not (tmp_path / ".running.lock").exists()
    with (
        pytest.raises(ValueError, match="not an intact ledger"),
        LedgerEntry(Ledger(path), entry._description, tmp_path, SweepPosition(tmp_path, 0)),
    ):
        pass
    assert not (tmp_path / ".running.lock").exists()


def test_forgotten_jobs_run_again(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["-m", *TINY, "seed=1,2"]
    assert script(*sweep) == 0
    first = ledger(tmp_path)[0].job
    assert status([str(tmp_path), "--forget", first]) == 0
    assert status([str(tmp_path), "--forget", first]) == 2
    assert f"--forget {first}: there is no such job; known: " in capsys.readouterr().err
    assert script(*sweep) == 0
    assert [attempt.job == first for attempt in ledger(tmp_path)] == [False, True]


def test_a_sweep_is_parsed_once(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs that are listed are those that run, in the same order, whatever is drawn or looked up for them."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    content = "# @package _global_\nname: 7\nhydra:\n  sweeper:\n    params:\n      hyp: glob(fb*)\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(content)
    options = ["--config-dir", "conf", "-m", "--config-name", "cfg"]
    begun = []
    begin = Ledger.begin

    def record(self: Ledger, what: JobDescription, folder: Path, place: SweepPosition, decide: Any) -> Any:
        begun.append((list(what.overrides), place.jobs[place.number]))
        return begin(self, what, folder, place, decide)

    monkeypatch.setattr(Ledger, "begin", record)
    tiny = [text for text in TINY if text != "hyp=fb1"]
    assert script(*options, *tiny, "+experiment=mine", "dryrun=False", "seed=shuffle(range(1,4))") == 0
    assert len(begun) == 9
    assert all(overrides == listed for overrides, listed in begun)
    ran = [listed for _, listed in begun]
    random.seed(1)
    assert script(*options, *tiny, "+experiment=mine", "dryrun=False", "seed=shuffle(range(1,4))") == 0
    assert [listed for _, listed in begun] == ran + ran  # the order is that of the command line
    assert random.random() == random.Random(1).random()
    assert {(attempt.name, attempt.state) for attempt in ledger(tmp_path)} == {("7", State.FINISHED)}
    capsys.readouterr()
    assert status([str(tmp_path)]) == 0
    assert "9 jobs: 9 finished" in capsys.readouterr().out


@pytest.mark.parametrize("command", [status, lambda _: None])
def test_a_damaged_ledger_ends_a_run_and_stays(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: Callable[[list[str]], int | None]
) -> None:
    path = tmp_path / "tables" / "ledger.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"a letter" * 100)
    ended = command([str(path)])
    assert (script(*TINY, "seed=1") if ended is None else ended) == 2
    shown = capsys.readouterr().err
    assert re.search(r"ledger\.sqlite: not an intact ledger \(file is not a database\); left untouched", shown)
    assert "Traceback" not in shown
    assert path.read_bytes() == b"a letter" * 100


def test_there_must_be_a_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status([str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no ledger here" in capsys.readouterr().err
