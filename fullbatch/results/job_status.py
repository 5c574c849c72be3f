"""The status of the jobs in a ledger: state, step, accuracy, and remaining time."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fullbatch.results.ledger import Attempt, Ledger, State, by_job, decisive
from fullbatch.results.recorded import read_rows
from fullbatch.runtime.files import format_error

OVER = (State.FINISHED, State.DIVERGED)
"""States of jobs that take no more time."""


@dataclass(frozen=True)
class JobStatus:
    """The status of a job.

    Args:
        job: the hash that identifies it; empty if it is waiting.
        name: name of the run.
        overrides: its overrides on the command line.
        state: its state.
        step: number of steps taken.
        steps: number of steps in all.
        accuracy: last validation accuracy, in [0, 1].
        seconds_left: expected remaining time.
        seconds: total time, expected or measured.
        folder: folder of the run.
        message: how it ended.
        problem: why its table of steps cannot be read.
    """

    job: str
    name: str
    overrides: tuple[str, ...]
    state: State
    step: int = 0
    steps: int | None = None
    accuracy: float | None = None
    seconds_left: float | None = None
    seconds: float | None = None
    folder: Path | None = None
    message: str = ""
    problem: str = ""


def job_statuses(ledger: Ledger) -> list[JobStatus]:
    """Return the status of each job, in the order of their first attempts, then those of the waiting jobs of sweeps.

    The remaining time is the number of remaining steps times the mean time of the steps so far; for jobs without a
    step, the mean total time of the others.
    """
    started = [_status_of(decisive(attempts)) for attempts in by_job(ledger.attempts()).values()]
    waiting = [JobStatus("", _name(overrides), overrides, State.WAITING) for overrides in ledger.waiting()]
    totals = [status.seconds for status in started if status.seconds is not None]
    mean = statistics.mean(totals) if totals else None
    return [
        replace(status, seconds_left=mean) if status.seconds_left is None and status.state not in OVER else status
        for status in (*started, *waiting)
    ]


def common_overrides(statuses: Iterable[JobStatus]) -> set[str]:
    """Return the overrides that all jobs have."""
    sets = [set(status.overrides) for status in statuses]
    return set.intersection(*sets) if sets else set()


def _status_of(attempt: Attempt) -> JobStatus:
    path = attempt.folder / f"table_{attempt.name}_convergence_results.csv"
    rows, problem = [], ""
    try:
        rows = read_rows(path, may_be_empty=True) if path.is_file() else []
    except (ValueError, OSError) as error:
        problem = format_error(error)
    accuracies = [row["valid_acc"] for row in rows if "valid_acc" in row]
    spent = sum(row.get(column, 0.0) for row in rows for column in ("train_time", "valid_time"))
    taken = attempt.result.get("steps_taken")  # a finished run that is repeated writes no table
    seconds = spent / len(rows) * attempt.steps if rows else None
    status = JobStatus(
        attempt.job,
        attempt.name,
        attempt.overrides,
        attempt.state,
        step=taken if isinstance(taken, int) else len(rows),
        steps=attempt.steps,
        accuracy=attempt.result.get("valid_acc", accuracies[-1] if accuracies else None),
        seconds_left=None if seconds is None else seconds - spent,
        seconds=seconds,
        folder=attempt.folder,
        message=attempt.message,
        problem=problem,
    )
    if attempt.state in OVER:
        return replace(status, seconds_left=0.0, seconds=attempt.result.get("total_time"))
    return status


def _name(overrides: Sequence[str]) -> str:
    return next((text.partition("=")[2] for text in overrides if text.startswith("name=")), "default")
