"""The ledger: which jobs ran, where, and how they ended; a database that many processes write at once.

One SQLite file with a rollback journal (a write-ahead log needs memory that network file systems do not share). Every
change is one short transaction, begun with the write lock; a process that finds the file locked waits. What a process
had written when it was killed is whole or not there.
"""

import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from fullbatch.runtime.locks import is_held

APPLICATION, VERSION = 0x46424C47, 1  # "FBLG"
SECONDS_TO_WAIT = 60.0

_SCHEMA = (
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
    "CREATE TABLE attempts (number INTEGER PRIMARY KEY, job TEXT NOT NULL, configuration TEXT NOT NULL, "
    "name TEXT NOT NULL, data TEXT NOT NULL, overrides TEXT NOT NULL, steps INTEGER NOT NULL, "
    "circumstances TEXT NOT NULL, folder TEXT NOT NULL, state TEXT NOT NULL, message TEXT NOT NULL, "
    "result TEXT NOT NULL, host TEXT NOT NULL, process INTEGER NOT NULL, started REAL NOT NULL, ended REAL)",
    "CREATE INDEX jobs ON attempts (job)",
    "CREATE TABLE planned (sweep TEXT NOT NULL, number INTEGER NOT NULL, overrides TEXT NOT NULL, job TEXT, "
    "PRIMARY KEY (sweep, number))",
)


class State(str, Enum):
    """How far a job is."""

    WAITING = "waiting"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"
    DIVERGED = "diverged"
    FAILED = "failed"


@dataclass(frozen=True)
class Description:
    """What a job is, before it runs.

    Args:
        job: hash of all that makes it this job.
        configuration: hash of the same without name and seed.
        name: of the run.
        data: name of the data set.
        overrides: what was typed for it.
        steps: how many it takes.
        circumstances: hash of what may change the numbers without being meant to: program, libraries, machine.
    """

    job: str
    configuration: str
    name: str
    data: str
    overrides: tuple[str, ...]
    steps: int
    circumstances: str


@dataclass(frozen=True)
class Attempt(Description):
    """One process' attempt at a job."""

    number: int
    folder: Path
    state: State
    message: str
    result: dict[str, float]
    host: str
    process: int
    started: float
    ended: float | None


@dataclass(frozen=True)
class Place:
    """A job's place in a sweep: the sweep's folder, its number there, and the overrides of all jobs where known."""

    sweep: Path
    number: int
    jobs: Sequence[Sequence[str]] = ()


Decide = Callable[[Sequence[Attempt]], Attempt | None]
"""From all attempts at a job to the one that makes another is_redundant; None where there is none."""


def lease_of(folder: Path) -> Path:
    """Return the lease that the process running in ``folder`` holds."""
    return folder / ".running.lock"


def by_job(attempts: Sequence[Attempt]) -> dict[str, list[Attempt]]:
    """Return the attempts at each job, in the order in which the jobs began."""
    found: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        found.setdefault(attempt.job, []).append(attempt)
    return found


def decisive(attempts: Sequence[Attempt]) -> Attempt:
    """Return the attempt that says where a job stands: one that finished, else one that is running, else the last."""
    for state in (State.FINISHED, State.RUNNING):
        for attempt in attempts:
            if attempt.state is state:
                return attempt
    return attempts[-1]


def is_redundant(attempts: Sequence[Attempt], circumstances: str) -> Attempt | None:
    """Return the attempt because of which a job need not run: one that finished, or is running, or diverged last.

    What diverged would do so again, bitwise, unless program, libraries, machine or ``impl`` are others now.
    Interrupted and failed ones are to be taken up again.
    """
    if not attempts:
        return None
    last = decisive(attempts)
    diverged = last.state is State.DIVERGED and last.circumstances == circumstances
    return last if last.state in (State.FINISHED, State.RUNNING) or diverged else None


class Ledger:
    """The file at ``path``; folders within its launch folder are noted relative to that, so that all can be moved.

    Every method raises ``ValueError`` where the file is damaged, another program's or cannot be written; it is then
    left untouched.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._launched_in = path.absolute().parent.parent

    def begin(
        self, what: Description, folder: Path, place: Place | None = None, decide: Decide = lambda _: None
    ) -> Attempt | list[Attempt]:
        """Note that a process starts a job, unless ``decide`` says that nothing needs to be done.

        All in one transaction: of several processes with the same job, one gets it. The caller holds the lease of the
        folder.

        Returns:
            The attempt that makes this one is_redundant; or all earlier ones, this one last.
        """
        with self._open(write=True) as base:
            if place is not None:
                _plan(base, place, what.job)
            before = self._attempts(base, "WHERE job = ?", what.job)
            is_redundant = decide(before)
            return is_redundant if is_redundant is not None else [*before, self._insert(base, what, folder)]

    def end(self, number: int, state: State, message: str = "", result: Mapping[str, float] | None = None) -> None:
        """Note how an attempt ended."""
        values = (state.value, message, json.dumps(dict(result or {})), time.time(), number)
        with self._open(write=True) as base:
            base.execute("UPDATE attempts SET state = ?, message = ?, result = ?, ended = ? WHERE number = ?", values)

    def forget(self, jobs: Sequence[str]) -> None:
        """Forget all attempts at these jobs."""
        with self._open(write=True) as base:
            for job in jobs:
                base.execute("DELETE FROM attempts WHERE job = ?", (job,))
                base.execute("DELETE FROM planned WHERE job = ?", (job,))

    def attempts(self) -> list[Attempt]:
        """Return all attempts, oldest first; one whose process is gone without a word counts as interrupted."""
        with self._open(write=False) as base:
            return self._attempts(base)

    def waiting(self) -> list[tuple[str, ...]]:
        """Return the overrides of the jobs of sweeps whose turn has never come."""
        query = "SELECT overrides FROM planned GROUP BY overrides HAVING max(job IS NOT NULL) = 0 ORDER BY min(rowid)"
        with self._open(write=False) as base:
            return [tuple(json.loads(row["overrides"])) for row in base.execute(query)]

    def _attempts(self, base: sqlite3.Connection, condition: str = "", *values: str) -> list[Attempt]:
        rows = base.execute(f"SELECT * FROM attempts {condition} ORDER BY number", values)
        return [self._attempt(dict(row)) for row in rows]

    def _attempt(self, row: dict[str, object]) -> Attempt:
        found = Attempt(
            **{
                **row,
                "folder": self._launched_in / str(row["folder"]),
                "state": State(row["state"]),
                "overrides": tuple(json.loads(str(row["overrides"]))),
                "result": json.loads(str(row["result"])),
            }
        )
        gone = found.state is State.RUNNING and not is_held(lease_of(found.folder))
        return replace(found, state=State.INTERRUPTED, message="the process was killed") if gone else found

    def _insert(self, base: sqlite3.Connection, what: Description, folder: Path) -> Attempt:
        folder = folder.absolute()
        inside = folder.is_relative_to(self._launched_in)
        row = {
            **vars(what),
            "overrides": json.dumps(what.overrides),
            "folder": str(folder.relative_to(self._launched_in) if inside else folder),
            "state": State.RUNNING.value,
            "message": "",
            "result": "{}",
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": time.time(),
            "ended": None,
        }
        columns, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
        row["number"] = base.execute(f"INSERT INTO attempts ({columns}) VALUES ({marks})", row).lastrowid
        return self._attempt(row)

    @contextmanager
    def _open(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        address = f"{self.path.absolute().as_uri()}?mode={'rwc' if write else 'rw'}"
        try:
            with closing(sqlite3.connect(address, SECONDS_TO_WAIT, isolation_level=None, uri=True)) as base:
                base.row_factory = sqlite3.Row
                base.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                self._check(base, write)
                yield base
                base.execute("COMMIT")
        except sqlite3.OperationalError as error:  # locked, read-only, full: what the file system or the lock refuses
            raise ValueError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path}: {self._refusal(str(error))}") from error

    def _check(self, base: sqlite3.Connection, write: bool) -> None:
        program, version = (base.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        new = base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0 and program == version == 0
        if new and write:
            for statement in _SCHEMA:
                base.execute(statement)
        elif new or program != APPLICATION:
            raise ValueError(f"{self.path}: {self._refusal('made by another program')}")
        elif version != VERSION:
            raise ValueError(f"{self.path}: a ledger of format {version}; this version reads format {VERSION}")
        elif (found := base.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise ValueError(f"{self.path}: {self._refusal(found)}")

    @staticmethod
    def _refusal(reason: str) -> str:
        reason = " ".join(reason.split())
        return f"no whole ledger of this program ({reason}); left untouched: move it away, and a new one is begun"


def _plan(base: sqlite3.Connection, place: Place, job: str) -> None:
    """Note all the jobs of the sweep, the first time, and that this one's turn has come."""
    for number, overrides in enumerate(place.jobs):
        values = (str(place.sweep), number, json.dumps(list(overrides)))
        base.execute("INSERT OR IGNORE INTO planned (sweep, number, overrides) VALUES (?, ?, ?)", values)
    base.execute("UPDATE planned SET job = ? WHERE sweep = ? AND number = ?", (job, str(place.sweep), place.number))
