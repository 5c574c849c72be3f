"""The ledger: one of many gets a job, nothing is lost, killed processes are known to be gone, bad files stay."""

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fullbatch.results.job_status import job_statuses
from fullbatch.results.ledger import Attempt, Description, Ledger, Place, State, is_redundant, lease_of
from fullbatch.runtime.locks import is_held, lease


def description(job: str = "j", circumstances: str = "c") -> Description:
    return Description(job, "k", "mine", "digits", ("seed=1",), 4, circumstances)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "tables" / "ledger.sqlite")


def attempt_at(ledger: Ledger, folder: Path, job: str = "j") -> Attempt:
    """Begin an attempt in a new folder, as a process that dies at once: its lease is not held."""
    folder.mkdir(exist_ok=True)
    found = ledger.begin(description(job), folder)
    assert isinstance(found, list)
    return found[-1]


def test_an_attempt_is_what_was_said_of_it(ledger: Ledger, tmp_path: Path) -> None:
    with lease(lease_of(tmp_path)):
        first = attempt_at(ledger, tmp_path)
        assert first.state is State.RUNNING
        assert ledger.attempts() == [first]
        ledger.end(first.number, State.FINISHED, "all 4 steps are taken", {"valid_acc": 0.1 + 0.2})
    (found,) = ledger.attempts()
    assert (found.state, found.message, found.result) == (
        State.FINISHED,
        "all 4 steps are taken",
        {"valid_acc": 0.1 + 0.2},
    )
    assert (found.process, found.folder, found.overrides) == (os.getpid(), tmp_path, ("seed=1",))
    assert found.ended is not None
    assert found.ended >= found.started


def test_folders_move_with_the_launch_folder(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    attempt_at(ledger, tmp_path / "outputs" / "0")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "tables").rename(elsewhere / "tables")
    (found,) = Ledger(elsewhere / "tables" / "ledger.sqlite").attempts()
    assert found.folder == elsewhere / "outputs" / "0"


def test_a_lease_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    code = f"""
import time; from pathlib import Path; from fullbatch.runtime.locks import lease
with lease(Path({str(path)!r})):
    print(flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_held(path)
        with pytest.raises(ValueError, match="another process is using this folder"), lease(path):
            pass
        process.kill()
    assert not is_held(path)
    with lease(path):
        assert is_held(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("states", "settled"),
    [
        ([], None),
        ([State.INTERRUPTED], None),
        ([State.FAILED], None),
        ([State.FINISHED], State.FINISHED),
        ([State.RUNNING], State.RUNNING),
        ([State.DIVERGED], State.DIVERGED),
        ([State.FINISHED, State.INTERRUPTED], State.FINISHED),  # a run by hand, issued again and killed
        ([State.FINISHED, State.RUNNING], State.FINISHED),
        ([State.INTERRUPTED, State.RUNNING], State.RUNNING),
        ([State.RUNNING, State.FAILED], State.RUNNING),
        ([State.DIVERGED, State.INTERRUPTED], None),
        ([State.INTERRUPTED, State.DIVERGED], State.DIVERGED),
    ],
)
def test_what_need_not_run(ledger: Ledger, tmp_path: Path, states: list[State], settled: State | None) -> None:
    for number, state in enumerate(states):
        attempt = attempt_at(ledger, tmp_path / str(number))
        ledger.end(attempt.number, state)
        if state is State.RUNNING:
            lease_ = lease(lease_of(tmp_path / str(number)))
            lease_.__enter__()
    attempts = ledger.attempts() if states else []
    found = is_redundant(attempts, "c")
    assert (found.state if found else None) is settled
    assert settled is not State.DIVERGED or is_redundant(attempts, "another program") is None
    if State.RUNNING in states:
        lease_.__exit__(None, None, None)


WORK = """
import random, sys; from pathlib import Path
from fullbatch.results.ledger import *; from fullbatch.runtime.locks import lease
ledger, folder, worker, jobs = Ledger(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]), 12
print(flush=True); sys.stdin.readline()  # all begin together
for number in random.Random(worker).sample(range(jobs), jobs):
    what = Description(f"job {number}", "k", "mine", "digits", (), 4, "c")
    place = Place(folder, number, [[f"seed={job}"] for job in range(jobs)])
    mine = folder / f"{worker}_{number}"
    mine.mkdir()
    with lease(lease_of(mine)):
        found = ledger.begin(what, mine, place, lambda before: is_redundant(before, "c"))
        if isinstance(found, list):
            ledger.end(found[-1].number, State.FINISHED, "", {"worker": worker})
"""


@pytest.mark.distributed
def test_of_many_processes_one_gets_a_job_and_nothing_is_lost(ledger: Ledger, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORK, str(ledger.path), str(tmp_path)]
    workers = [
        subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for number in range(4)
    ]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=300)
        assert worker.returncode == 0
    found = ledger.attempts()
    assert Counter(attempt.job for attempt in found) == Counter({f"job {number}": 1 for number in range(12)})
    assert all(attempt.state is State.FINISHED for attempt in found)
    assert ledger.waiting() == []


@pytest.mark.distributed
def test_a_kill_leaves_a_whole_ledger(ledger: Ledger, tmp_path: Path) -> None:
    code = f"""
import sys; from pathlib import Path; from fullbatch.results.ledger import *
ledger = Ledger(Path({str(ledger.path)!r}))
for number in range(10**6):
    what = Description("j", "k", "mine", "digits", (), 4, "c")
    ledger.end(ledger.begin(what, Path({str(tmp_path)!r}))[-1].number, State.FINISHED, "", {{"number": number}})
    print(number, flush=True)
"""
    total, chance = 0, random.Random(0)
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            told = 1 + len([line for line in process.stdout.read().splitlines(keepends=True) if line.strip()])
        found = ledger.attempts()
        finished = sum(attempt.state is State.FINISHED for attempt in found)
        assert total + told <= finished <= total + told + 1
        total = finished


def test_jobs_whose_turn_has_not_come_are_waiting(ledger: Ledger, tmp_path: Path) -> None:
    jobs = [["name=mine", f"seed={number}"] for number in range(3)]
    what = description()
    ledger.begin(what, tmp_path, Place(tmp_path / "first", 0, jobs))
    assert ledger.waiting() == [("name=mine", "seed=1"), ("name=mine", "seed=2")]
    ledger.begin(description("another"), tmp_path, Place(tmp_path / "again", 1, jobs))
    assert ledger.waiting() == [("name=mine", "seed=2")]
    assert [one.state for one in job_statuses(ledger)] == [State.INTERRUPTED] * 2 + [State.WAITING]
    ledger.forget(["another"])
    assert [attempt.job for attempt in ledger.attempts()] == ["j"]


def truncated(path: Path) -> None:
    ledger = Ledger(path)
    for number in range(40):
        ledger.begin(description(f"job {number}"), path.parent)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign(path: Path) -> None:
    base = sqlite3.connect(path)
    base.execute("CREATE TABLE letters (a)")
    base.close()


def newer(path: Path) -> None:
    Ledger(path).begin(description(), path.parent)
    base = sqlite3.connect(path)
    base.execute("PRAGMA user_version = 2")
    base.close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"a letter" * 100), "not a database"),
        (truncated, "no whole ledger of this program"),
        (foreign, "made by another program"),
        (newer, "a ledger of format 2; this version reads format 1"),
        (Path.mkdir, "unable to open database file"),
    ],
)
def test_a_bad_file_is_named_and_left_as_it_is(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "ledger.sqlite"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    for use in (Ledger(path).attempts, lambda: Ledger(path).begin(description(), tmp_path)):
        with pytest.raises(ValueError, match=message) as refused:
            use()
        assert str(refused.value).startswith(f"{path}: ")
    assert before is None or path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["ledger.sqlite"]


def test_whichever_page_is_damaged_it_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    for number in range(40):
        Ledger(path).begin(description(f"job {number}"), tmp_path)
    whole = path.read_bytes()
    for start in range(0, len(whole), 4096):
        spoiled = bytearray(whole)
        spoiled[start : start + 4096] = b"\xff" * 4096
        path.write_bytes(spoiled)
        with pytest.raises(ValueError, match="no whole ledger of this program"):
            Ledger(path).begin(description(), tmp_path)
        assert path.read_bytes() == spoiled


def test_a_full_disk_costs_no_entry(ledger: Ledger, tmp_path: Path) -> None:
    first = attempt_at(ledger, tmp_path / "0")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(ValueError, match=r"ledger\.sqlite: (disk I/O error|database or disk is full)"):
            ledger.end(first.number, State.FINISHED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [attempt.state for attempt in ledger.attempts()] == [State.INTERRUPTED]
