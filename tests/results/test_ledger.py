"""The ledger: one of many processes gets a job, no entry is lost, kills are detected, bad files stay untouched."""

import errno
import fcntl
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from old_files import GOLDEN

from fullbatch.results import ledger_file
from fullbatch.results.job_status import job_statuses
from fullbatch.results.ledger import Attempt, JobDescription, Ledger, State, SweepPosition, is_redundant, lease_of
from fullbatch.results.ledger_file import MAX_BYTES, LedgerFile, Transaction
from fullbatch.runtime.locks import is_held, lease


def description(job: str = "j", circumstances: str = "c") -> JobDescription:
    return JobDescription(job, "k", "mine", "digits", ("seed=1",), 4, circumstances)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "tables" / "ledger.sqlite")


def attempt_at(ledger: Ledger, folder: Path, job: str = "j") -> Attempt:
    """Begin an attempt in a new folder without holding its lease, as if the process had died."""
    folder.mkdir(exist_ok=True)
    attempts = ledger.begin(description(job), folder)
    assert isinstance(attempts, list)
    return attempts[-1]


def test_attempts_are_stored_and_read_back(ledger: Ledger, tmp_path: Path) -> None:
    with lease(lease_of(tmp_path)):
        first = attempt_at(ledger, tmp_path)
        assert first.state is State.RUNNING
        assert ledger.attempts() == [first]
        ledger.end(first.number, State.FINISHED, "all 4 steps are taken", {"valid_acc": 0.1 + 0.2})
    (attempt,) = ledger.attempts()
    assert (attempt.state, attempt.message) == (State.FINISHED, "all 4 steps are taken")
    assert attempt.result == {"valid_acc": 0.1 + 0.2}
    assert (attempt.process, attempt.folder, attempt.overrides) == (os.getpid(), tmp_path, ("seed=1",))
    assert attempt.ended is not None
    assert attempt.ended >= attempt.started


def test_folders_move_with_the_launch_folder(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    attempt_at(ledger, tmp_path / "outputs" / "0")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "tables").rename(elsewhere / "tables")
    (attempt,) = Ledger(elsewhere / "tables" / "ledger.sqlite").attempts()
    assert attempt.folder == elsewhere / "outputs" / "0"


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
    ("states", "redundant"),
    [
        ([], None),
        ([State.INTERRUPTED], None),
        ([State.FAILED], None),
        ([State.FINISHED], State.FINISHED),
        ([State.RUNNING], State.RUNNING),
        ([State.DIVERGED], State.DIVERGED),
        ([State.FINISHED, State.INTERRUPTED], State.FINISHED),  # a single run, started again and killed
        ([State.FINISHED, State.RUNNING], State.FINISHED),
        ([State.INTERRUPTED, State.RUNNING], State.RUNNING),
        ([State.RUNNING, State.FAILED], State.RUNNING),
        ([State.DIVERGED, State.INTERRUPTED], None),
        ([State.INTERRUPTED, State.DIVERGED], State.DIVERGED),
    ],
)
def test_redundant_jobs(ledger: Ledger, tmp_path: Path, states: list[State], redundant: State | None) -> None:
    with ExitStack() as leases:
        for number, state in enumerate(states):
            attempt = attempt_at(ledger, tmp_path / str(number))
            ledger.end(attempt.number, state)
            if state is State.RUNNING:
                leases.enter_context(lease(lease_of(attempt.folder)))
        attempts = ledger.attempts() if states else []
        earlier = is_redundant(attempts, "c")
        assert (earlier.state if earlier else None) is redundant
        assert redundant is not State.DIVERGED or is_redundant(attempts, "another program") is None


WORK = """
import random, sys; from pathlib import Path
from fullbatch.results.ledger import *; from fullbatch.runtime.locks import lease
ledger, folder, worker, jobs = Ledger(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]), 12
print(flush=True); sys.stdin.readline()  # start together
for number in random.Random(worker).sample(range(jobs), jobs):
    description = JobDescription(f"job {number}", "k", "mine", "digits", (), 4, "c")
    position = SweepPosition(folder, number, [[f"seed={job}"] for job in range(jobs)])
    run_folder = folder / f"{worker}_{number}"
    run_folder.mkdir()
    with lease(lease_of(run_folder)):
        attempts = ledger.begin(description, run_folder, position, lambda earlier: is_redundant(earlier, "c"))
        if isinstance(attempts, list):
            ledger.end(attempts[-1].number, State.FINISHED, "", {"worker": worker})
"""


@pytest.mark.distributed
def test_one_of_many_processes_gets_a_job_and_no_entry_is_lost(ledger: Ledger, tmp_path: Path) -> None:
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
    attempts = ledger.attempts()
    assert Counter(attempt.job for attempt in attempts) == Counter({f"job {number}": 1 for number in range(12)})
    assert all(attempt.state is State.FINISHED for attempt in attempts)
    assert ledger.waiting() == []


@pytest.mark.distributed
def test_a_kill_leaves_an_intact_ledger(ledger: Ledger, tmp_path: Path) -> None:
    code = f"""
import sys; from pathlib import Path; from fullbatch.results.ledger import *
ledger = Ledger(Path({str(ledger.path)!r}))
for number in range(10**6):
    description = JobDescription("j", "k", "mine", "digits", (), 4, "c")
    ledger.end(ledger.begin(description, Path({str(tmp_path)!r}))[-1].number, State.FINISHED, "", {{"number": number}})
    print(number, flush=True)
"""
    total, generator = 0, random.Random(0)
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(generator.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            printed = 1 + len([line for line in process.stdout.read().splitlines(keepends=True) if line.strip()])
        finished = sum(attempt.state is State.FINISHED for attempt in ledger.attempts())
        assert total + printed <= finished <= total + printed + 1
        total = finished


def test_jobs_that_have_not_been_started_are_waiting(ledger: Ledger, tmp_path: Path) -> None:
    jobs = [["name=mine", f"seed={number}"] for number in range(3)]
    ledger.begin(description(), tmp_path, SweepPosition(tmp_path / "first", 0, jobs))
    assert ledger.waiting() == [("name=mine", "seed=1"), ("name=mine", "seed=2")]
    ledger.begin(description("another"), tmp_path, SweepPosition(tmp_path / "again", 1, jobs))
    assert ledger.waiting() == [("name=mine", "seed=2")]
    assert [one.state for one in job_statuses(ledger)] == [State.INTERRUPTED] * 2 + [State.WAITING]
    ledger.forget(["another"])
    assert [attempt.job for attempt in ledger.attempts()] == ["j"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def no_lock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", no_lock)
    monkeypatch.setattr(fcntl, "flock", no_lock)
    ledger = Ledger(tmp_path / "tables" / "ledger.sqlite")
    with lease(lease_of(tmp_path)):
        attempt_at(ledger, tmp_path)
        assert [attempt.state for attempt in ledger.attempts()] == [State.RUNNING]
        monkeypatch.setattr(ledger_file, "SECONDS_TO_WAIT", 0.1)
        with (
            ledger._file.open(write=True),
            pytest.raises(ValueError, match=r"ledger\.sqlite: locked by another process"),
        ):
            ledger.attempts()
    assert [attempt.state for attempt in ledger.attempts()] == [State.INTERRUPTED]
    assert [path.name for path in ledger.path.parent.glob("*.holder")] == []


def truncated(path: Path) -> None:
    ledger = Ledger(path)
    for number in range(40):
        ledger.begin(description(f"job {number}"), path.parent)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE letters (a)")
    connection.close()


def newer(path: Path) -> None:
    Ledger(path).begin(description(), path.parent)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 3")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"a letter" * 100), "not a database"),
        (truncated, "not an intact ledger"),
        (foreign, "made by another program"),
        (newer, "a ledger of format 3; this version reads formats 1 and 2"),
        (Path.mkdir, "unable to open database file"),
    ],
)
def test_a_bad_file_is_named_and_left_untouched(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "ledger.sqlite"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    for use in (Ledger(path).attempts, lambda: Ledger(path).begin(description(), tmp_path)):
        with pytest.raises(ValueError, match=message) as refused:
            use()
        assert str(refused.value).startswith(f"{path}: ")
    assert before is None or path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_damage_of_any_page_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    for number in range(40):
        Ledger(path).begin(description(f"job {number}"), tmp_path)
    whole = path.read_bytes()
    for start in range(0, len(whole), 4096):
        spoiled = bytearray(whole)
        spoiled[start : start + 4096] = b"\xff" * 4096
        path.write_bytes(spoiled)
        with pytest.raises(ValueError, match="not an intact ledger"):
            Ledger(path).begin(description(), tmp_path)
        assert path.read_bytes() == spoiled


def filled(path: Path) -> Ledger:
    """Return a ledger with jobs that ended in each way, and one that waits."""
    ledger = Ledger(path)
    jobs = [["name=mine", f"seed={number}"] for number in range(5)]
    for number, state in enumerate([State.FINISHED, State.DIVERGED, State.FAILED, State.INTERRUPTED]):
        position = SweepPosition(path.parent / "sweep", number, jobs)
        attempts = ledger.begin(description(f"job {number}"), path.parent / str(number), position)
        assert isinstance(attempts, list)
        ledger.end(attempts[-1].number, state, "a message", {"valid_acc": 0.1 + 0.2, "steps_taken": 4})
    return ledger


def content(ledger: Ledger) -> object:
    return ledger.attempts(), ledger.waiting(), [vars(status) for status in job_statuses(ledger)]


@pytest.mark.parametrize(("start", "number"), [(0, 100), pytest.param(1, 3000, marks=pytest.mark.soak)])
def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path: Path, start: int, number: int) -> None:
    ledger = filled(tmp_path / "ledger.sqlite")
    whole, expected, generator, refused = ledger.path.read_bytes(), content(ledger), random.Random(start), 0
    for _ in range(number):
        flipped, bit = bytearray(whole), generator.randrange(8 * len(whole))
        flipped[bit // 8] ^= 1 << bit % 8
        ledger.path.write_bytes(flipped)
        try:
            assert content(ledger) == expected, f"bit {bit}"
            attempts = ledger.begin(description(), tmp_path)
            assert isinstance(attempts, list)
            assert content(ledger)[0][:4] == expected[0]  # type: ignore[index]
        except ValueError as error:
            assert str(error).startswith(f"{ledger.path}: "), f"bit {bit}"  # noqa: PT017
            refused += 1
    assert refused > number // 10


def test_a_flipped_bit_in_a_ledger_without_checksums_is_no_other_error(tmp_path: Path) -> None:
    path = tmp_path / "tables" / "ledger.sqlite"
    path.parent.mkdir()
    whole, generator = (GOLDEN / "tables" / "ledger.sqlite").read_bytes(), random.Random(0)
    for _ in range(100):
        flipped, bit = bytearray(whole), generator.randrange(8 * len(whole))
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            content(Ledger(path))
            Ledger(path).begin(description(), tmp_path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: "), f"bit {bit}"  # noqa: PT017


def edit(path: Path, table: str, changes: str, *, checksums: bool = True) -> None:
    """Change rows as another program would: with the right checksums, or with the old ones."""
    file = LedgerFile(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.row_factory = sqlite3.Row
        connection.execute(f"UPDATE {table} SET {changes}")
        transaction = Transaction(file, connection, has_checksums=True)
        for row in connection.execute(f"SELECT * FROM {table}").fetchall() if checksums else ():
            transaction.put(table, {key: row[key] for key in row.keys() if key != "checksum"})  # noqa: SIM118


@pytest.mark.parametrize(
    ("table", "changes", "reason"),
    [
        ("attempts", "steps = 'many'", "row 1 of attempts: steps is 'many'"),
        ("attempts", "steps = 4.5", "row 1 of attempts: steps is '4.5'"),
        ("attempts", "started = 'soon'", "row 1 of attempts: started is 'soon'"),
        ("attempts", "ended = 'late'", "row 1 of attempts: ended is 'late'"),
        ("attempts", "state = 'well'", "'well' is no state of an attempt"),
        ("attempts", "state = 'waiting'", "'waiting' is no state of an attempt"),
        ("attempts", "overrides = '{}'", "'{}' is no list of overrides"),
        ("attempts", "overrides = '[1]'", "'[1]' is no list of overrides"),
        ("attempts", "overrides = ''", "'' is not JSON"),
        ("attempts", "result = '[]'", "'[]' is no result of a run"),
        ("attempts", """result = '{"valid_acc": "high"}'""", "is no result of a run"),
        ("attempts", """result = '{"valid_acc": true}'""", "is no result of a run"),
        ("attempts", f"result = '{'[' * 100_000}'", "is not JSON"),
        ("attempts", f"result = '{'1' * 5_000}'", "is not JSON"),
        ("planned", "job = NULL, overrides = '[[]]'", "'[[]]' is no list of overrides"),
        ("planned", "job = 3.5", None),  # a column of text makes it text
        ("attempts", f"message = '{'x' * (MAX_BYTES + 1)}'", "string or blob too big"),
    ],
)
def test_rows_with_other_content_are_named(tmp_path: Path, table: str, changes: str, reason: str | None) -> None:
    ledger = filled(tmp_path / "ledger.sqlite")
    edit(ledger.path, table, changes)
    if reason is None:
        assert ledger.waiting() == []
        return
    with pytest.raises(ValueError, match=re.escape(reason)) as refused:
        content(ledger)
    assert str(refused.value).startswith(f"{ledger.path}: not an intact ledger (")
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("table", "changes"),
    [("attempts", "steps = 5"), ("attempts", "job = 'j'"), ("attempts", "checksum = NULL"), ("planned", "job = 'j'")],
)
def test_rows_with_other_checksums_are_named(tmp_path: Path, table: str, changes: str) -> None:
    ledger = filled(tmp_path / "ledger.sqlite")
    edit(ledger.path, table, changes, checksums=False)
    with pytest.raises(ValueError, match=rf"row \d of {table}: its checksum is that of other values"):
        content(ledger)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON attempts BEGIN DELETE FROM attempts; END",
        "CREATE VIEW v AS SELECT * FROM attempts",
        "ALTER TABLE attempts ADD COLUMN mood TEXT",
        "ALTER TABLE attempts DROP COLUMN message",
        "DROP INDEX jobs",
    ],
)
def test_a_ledger_has_its_own_tables_only(tmp_path: Path, statement: str) -> None:
    ledger = filled(tmp_path / "ledger.sqlite")
    with closing(sqlite3.connect(ledger.path)) as connection, connection:
        connection.execute(statement)
    for use in (ledger.attempts, lambda: ledger.begin(description(), tmp_path)):
        with pytest.raises(ValueError, match="other tables, columns, indices or triggers"):
            use()


def test_ledgers_without_checksums_are_read_and_get_them(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "tables", tmp_path / "tables")
    ledger = Ledger(tmp_path / "tables" / "ledger.sqlite")
    before = ledger.path.read_bytes()
    old = ledger.attempts(), ledger.waiting()
    assert [attempt.state for attempt in old[0]] == [State.FINISHED, State.DIVERGED, State.INTERRUPTED]
    assert len(old[1]) == 1
    assert ledger.path.read_bytes() == before
    ledger.forget([])
    assert ledger.path.read_bytes() != before
    assert (ledger.attempts(), ledger.waiting()) == old
    edit(ledger.path, "attempts", "steps = 5", checksums=False)
    with pytest.raises(ValueError, match="row 1 of attempts: its checksum"):
        ledger.attempts()


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
