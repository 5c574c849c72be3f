"""The ledger: a database of the attempts at jobs, which many processes update at the same time.

It is one SQLite file with a rollback journal (a write-ahead log needs shared memory, which network file systems lack).
Every change is one short transaction that begins by taking the write lock, and a process that finds the file locked
waits. If a process is killed, its last change is either complete or absent.
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
    """The state of a job or of an attempt at it."""

    WAITING = "waiting"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"
    DIVERGED = "diverged"
    FAILED = "failed"


@dataclass(frozen=True)
class JobDescription:
    """The description of a job before it runs.

    Args:
        job: hash that identifies the job.
        configuration: hash that identifies the job up to name and seed.
        name: name of the run.
        data: name of the data set.
        overrides: its overrides on the command line.
        steps: its number of steps.
        circumstances: hash of the program, libraries, machine and ``impl``, which may change results by rounding.
    """

    job: str
    configuration: str
    name: str
    data: str
    overrides: tuple[str, ...]
    steps: int
    circumstances: str


@dataclass(frozen=True)
class Attempt(JobDescription):
    """An attempt of one process at a job."""

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
class SweepPosition:
    """The position of a job in a sweep.

    Args:
        sweep: the folder of the sweep.
        number: the number of the job in the sweep.
        jobs: the overrides of all jobs of the sweep; empty if unknown.
    """

    sweep: Path
    number: int
    jobs: Sequence[Sequence[str]] = ()


Decide = Callable[[Sequence[Attempt]], Attempt | None]
"""From the attempts at a job to the one that makes another redundant, or None."""


def lease_of(folder: Path) -> Path:
    """Return the lease that a process holds while it runs in ``folder``."""
    return folder / ".running.lock"


def by_job(attempts: Sequence[Attempt]) -> dict[str, list[Attempt]]:
    """Return the attempts at each job, in the order of the first attempts."""
    groups: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        groups.setdefault(attempt.job, []).append(attempt)
    return groups


def decisive(attempts: Sequence[Attempt]) -> Attempt:
    """Return the attempt that determines the state of a job: a finished one, else a running one, else the last."""
    for state in (State.FINISHED, State.RUNNING):
        for attempt in attempts:
            if attempt.state is state:
                return attempt
    return attempts[-1]


def is_redundant(attempts: Sequence[Attempt], circumstances: str) -> Attempt | None:
    """Return the attempt that makes another one redundant: a finished or running one, or a last one that diverged.

    A diverged job would diverge again, bitwise, unless its circumstances have changed. Interrupted and failed jobs are
    to be continued.
    """
    if not attempts:
        return None
    attempt = decisive(attempts)
    diverged = attempt.state is State.DIVERGED and attempt.circumstances == circumstances
    return attempt if attempt.state in (State.FINISHED, State.RUNNING) or diverged else None


class Ledger:
    """The ledger in the file ``path``. Folders below its launch folder are stored relative to it, so it can be moved.

    Every method raises ``ValueError`` if the file is damaged, belongs to another program or cannot be written; the file
    is then left untouched.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._launch_folder = path.absolute().parent.parent

    def begin(
        self,
        description: JobDescription,
        folder: Path,
        position: SweepPosition | None = None,
        decide: Decide = lambda _: None,
    ) -> Attempt | list[Attempt]:
        """Record that this process starts a job in ``folder``, unless ``decide`` returns an attempt.

        This is one transaction, so only one of several processes gets a job. The caller holds the lease of the folder.

        Returns:
            The attempt that ``decide`` returned; or all earlier attempts, followed by the new one.
        """
        with self._open(write=True) as connection:
            if position is not None:
                _record_sweep(connection, position, description.job)
            attempts = self._attempts(connection, "WHERE job = ?", description.job)
            redundant_after = decide(attempts)
            return redundant_after or [*attempts, self._insert(connection, description, folder)]

    def end(self, number: int, state: State, message: str = "", result: Mapping[str, float] | None = None) -> None:
        """Record how an attempt ended."""
        values = (state.value, message, json.dumps(dict(result or {})), time.time(), number)
        statement = "UPDATE attempts SET state = ?, message = ?, result = ?, ended = ? WHERE number = ?"
        with self._open(write=True) as connection:
            connection.execute(statement, values)

    def forget(self, jobs: Sequence[str]) -> None:
        """Remove all attempts at these jobs."""
        with self._open(write=True) as connection:
            for job in jobs:
                connection.execute("DELETE FROM attempts WHERE job = ?", (job,))
                connection.execute("DELETE FROM planned WHERE job = ?", (job,))

    def attempts(self) -> list[Attempt]:
        """Return all attempts, oldest first; running ones whose process has ended count as interrupted."""
        with self._open(write=False) as connection:
            return self._attempts(connection)

    def waiting(self) -> list[tuple[str, ...]]:
        """Return the overrides of the jobs of sweeps that have not been started."""
        query = "SELECT overrides FROM planned GROUP BY overrides HAVING max(job IS NOT NULL) = 0 ORDER BY min(rowid)"
        with self._open(write=False) as connection:
            return [tuple(json.loads(row["overrides"])) for row in connection.execute(query)]

    def _attempts(self, connection: sqlite3.Connection, condition: str = "", *values: str) -> list[Attempt]:
        rows = connection.execute(f"SELECT * FROM attempts {condition} ORDER BY number", values)
        return [self._attempt(dict(row)) for row in rows]

    def _attempt(self, row: dict[str, object]) -> Attempt:
        attempt = Attempt(
            **{
                **row,
                "folder": self._launch_folder / str(row["folder"]),
                "state": State(row["state"]),
                "overrides": tuple(json.loads(str(row["overrides"]))),
                "result": json.loads(str(row["result"])),
            }
        )
        if attempt.state is State.RUNNING and not is_held(lease_of(attempt.folder)):
            return replace(attempt, state=State.INTERRUPTED, message="the process was killed")
        return attempt

    def _insert(self, connection: sqlite3.Connection, description: JobDescription, folder: Path) -> Attempt:
        folder = folder.absolute()
        inside = folder.is_relative_to(self._launch_folder)
        row = {
            **vars(description),
            "overrides": json.dumps(description.overrides),
            "folder": str(folder.relative_to(self._launch_folder) if inside else folder),
            "state": State.RUNNING.value,
            "message": "",
            "result": "{}",
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": time.time(),
            "ended": None,
        }
        columns, values = ", ".join(row), ", ".join(f":{name}" for name in row)
        row["number"] = connection.execute(f"INSERT INTO attempts ({columns}) VALUES ({values})", row).lastrowid
        return self._attempt(row)

    @contextmanager
    def _open(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        address = f"{self.path.absolute().as_uri()}?mode={'rwc' if write else 'rw'}"
        try:
            with closing(sqlite3.connect(address, SECONDS_TO_WAIT, isolation_level=None, uri=True)) as connection:
                connection.row_factory = sqlite3.Row
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                self._check(connection, write)
                yield connection
                connection.execute("COMMIT")
        except sqlite3.OperationalError as error:  # locked, read-only, full disk
            raise ValueError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(self._refusal(str(error))) from error

    def _check(self, connection: sqlite3.Connection, write: bool) -> None:
        def pragma(statement: str) -> object:
            return connection.execute(f"PRAGMA {statement}").fetchone()[0]

        program, version = pragma("application_id"), pragma("user_version")
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        is_new = tables == program == version == 0
        if is_new and write:
            for statement in _SCHEMA:
                connection.execute(statement)
        elif is_new or program != APPLICATION:
            raise ValueError(self._refusal("made by another program"))
        elif version != VERSION:
            raise ValueError(f"{self.path}: a ledger of format {version}; this version reads format {VERSION}")
        elif (result := pragma("quick_check(1)")) != "ok":
            raise ValueError(self._refusal(str(result)))

    def _refusal(self, reason: str) -> str:
        reason = " ".join(reason.split())
        return f"{self.path}: not an intact ledger ({reason}); left untouched: move it away to start a new one"


def _record_sweep(connection: sqlite3.Connection, position: SweepPosition, job: str) -> None:
    """Record all jobs of a sweep, once, and that ``job`` has been started at its position."""
    sweep = str(position.sweep)
    for number, overrides in enumerate(position.jobs):
        values = (sweep, number, json.dumps(list(overrides)))
        connection.execute("INSERT OR IGNORE INTO planned (sweep, number, overrides) VALUES (?, ?, ?)", values)
    connection.execute("UPDATE planned SET job = ? WHERE sweep = ? AND number = ?", (job, sweep, position.number))
