"""Where the jobs of a ledger stand: state, step, accuracy, and how long they will still take."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fullbatch.results.ledger import Attempt, Ledger, State, by_job, decisive
from fullbatch.training.tables import read_table

OVER = (State.FINISHED, State.DIVERGED)
"""States in which a job takes no more time."""


@dataclass(frozen=True)
class JobStatus:
    """Where one job stands; ``seconds_left`` of computation and ``accuracy`` (validation, in [0, 1]) where known."""

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


def job_statuses(ledger: Ledger) -> list[JobStatus]:
    """Return where each job stands, in the order in which they began; then those of sweeps that are still waiting.

    Time left is steps left times the mean time of the steps so far; of a job that has taken none, the mean of the whole
    time of the others.
    """
    begun = [_standing(decisive(attempts)) for attempts in by_job(ledger.attempts()).values()]
    waiting = [JobStatus("", _name(overrides), overrides, State.WAITING) for overrides in ledger.waiting()]
    known = [found.seconds for found in begun if found.seconds is not None]
    whole = statistics.mean(known) if known else None
    return [
        replace(found, seconds_left=whole) if found.seconds_left is None and found.state not in OVER else found
        for found in (*begun, *waiting)
    ]


def common(lists: Iterable[Sequence[str]]) -> set[str]:
    """Return the overrides that all have."""
    sets = [set(overrides) for overrides in lists]
    return set.intersection(*sets) if sets else set()


def _standing(attempt: Attempt) -> JobStatus:
    path = attempt.folder / f"table_{attempt.name}_convergence_results.csv"
    rows = read_table(path) if path.exists() else []
    accuracies = [row["valid_acc"] for row in rows if row.get("valid_acc")]
    accuracy = attempt.result.get("valid_acc", float(accuracies[-1]) if accuracies else None)
    spent = sum(float(row.get(column) or 0) for row in rows for column in ("train_time", "valid_time"))
    whole = spent / len(rows) * attempt.steps if rows else None
    found = JobStatus(
        attempt.job,
        attempt.name,
        attempt.overrides,
        attempt.state,
        step=len(rows),
        steps=attempt.steps,
        accuracy=accuracy,
        seconds=whole,
        folder=attempt.folder,
        message=attempt.message,
    )
    if attempt.state in OVER:
        return replace(found, seconds_left=0.0, seconds=attempt.result.get("total_time"))
    return replace(found, seconds_left=None if whole is None else whole - spent)


def _name(overrides: Sequence[str]) -> str:
    return next((text.partition("=")[2] for text in overrides if text.startswith("name=")), "default")
