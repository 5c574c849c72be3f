"""The ledger: a database of the attempts at jobs, which many processes update at the same time.

It is one SQLite file with a rollback journal (a write-ahead log needs shared memory, which network file systems lack).
Every change is one short transaction that begins by taking the write lock, and a process that finds the file locked
waits. If a process is killed, its last change is either complete or absent.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from fullbatch.results.ledger_file import LedgerFile, Transaction
from fullbatch.runtime.locks import is_held

MAX_MESSAGE = 10_000
"""Characters of a message that are stored."""


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
        self.launch_folder = path.absolute().parent.parent
        self._file = LedgerFile(path)

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
        with self._file.open(write=True) as transaction:
            if position is not None:
                _record_sweep(transaction, position, description.job)
            attempts = [self._attempt(row) for row in transaction.rows("attempts", "WHERE job = ?", description.job)]
            redundant_after = decide(attempts)
            return redundant_after or [*attempts, self._insert(transaction, description, folder)]

    def end(self, number: int, state: State, message: str = "", result: Mapping[str, float] | None = None) -> None:
        """Record how an attempt ended."""
        values = {"state": state.value, "message": message[:MAX_MESSAGE], "result": json.dumps(dict(result or {}))}
        with self._file.open(write=True) as transaction:
            for row in transaction.rows("attempts", "WHERE number = ?", number):
                transaction.put("attempts", {**row, **values, "ended": time.time()})

    def forget(self, jobs: Sequence[str]) -> None:
        """Remove all attempts at these jobs."""
        with self._file.open(write=True) as transaction:
            for job in jobs:
                transaction.forget(job)

    def attempts(self) -> list[Attempt]:
        """Return all attempts, oldest first; running ones whose process has ended count as interrupted."""
        with self._file.open(write=False) as transaction:
            return [self._attempt(row) for row in transaction.rows("attempts")]

    def waiting(self) -> list[tuple[str, ...]]:
        """Return the overrides of the jobs of sweeps that have not been started."""
        with self._file.open(write=False) as transaction:
            rows = transaction.rows("planned")
        started = {row["overrides"] for row in rows if row["job"] is not None}
        waiting = dict.fromkeys(row["overrides"] for row in rows if row["overrides"] not in started)
        return [self._overrides(text) for text in waiting]

    def _attempt(self, row: Mapping[str, Any]) -> Attempt:
        attempt = Attempt(
            **{
                **row,
                "folder": self.launch_folder / row["folder"],
                "state": self._state(row["state"]),
                "overrides": self._overrides(row["overrides"]),
                "result": self._result(row["result"]),
            }
        )
        if attempt.state is State.RUNNING and not is_held(lease_of(attempt.folder)):
            return replace(attempt, state=State.INTERRUPTED, message="the process was killed")
        return attempt

    def _state(self, text: str) -> State:
        if text not in {state.value for state in State} - {State.WAITING.value}:
            raise self._file.damaged(f"{text[:40]!r} is no state of an attempt")
        return State(text)

    def _overrides(self, text: str) -> tuple[str, ...]:
        overrides = self._json(text)
        if not isinstance(overrides, list) or not all(isinstance(one, str) for one in overrides):
            raise self._file.damaged(f"{text[:40]!r} is no list of overrides")
        return tuple(overrides)

    def _result(self, text: str) -> dict[str, float]:
        result = self._json(text)
        if not isinstance(result, dict) or not all(type(value) in (int, float) for value in result.values()):
            raise self._file.damaged(f"{text[:40]!r} is no result of a run")
        return result

    def _json(self, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise self._file.damaged(f"{text[:40]!r} is not JSON") from None

    def _insert(self, transaction: Transaction, description: JobDescription, folder: Path) -> Attempt:
        folder = folder.absolute()
        inside = folder.is_relative_to(self.launch_folder)
        last = transaction.rows("attempts", "WHERE number = (SELECT max(number) FROM attempts)")
        row = {
            **vars(description),
            "number": last[0]["number"] + 1 if last else 1,
            "overrides": json.dumps(description.overrides),
            "folder": str(folder.relative_to(self.launch_folder) if inside else folder),
            "state": State.RUNNING.value,
            "message": "",
            "result": "{}",
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": time.time(),
            "ended": None,
        }
        transaction.put("attempts", row)
        return self._attempt(row)


def _record_sweep(transaction: Transaction, position: SweepPosition, job: str) -> None:
    """Record all jobs of a sweep, once, and that ``job`` has been started at its position."""
    sweep = str(position.sweep)
    present = {row["number"]: row for row in transaction.rows("planned", "WHERE sweep = ?", sweep)}
    for number, overrides in enumerate(position.jobs):
        if number not in present:
            present[number] = {"sweep": sweep, "number": number, "overrides": json.dumps(list(overrides)), "job": None}
            transaction.put("planned", present[number])
    if position.number in present:
        transaction.put("planned", {**present[position.number], "job": job})
