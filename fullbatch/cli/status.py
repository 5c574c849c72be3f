"""Print the progress of runs and sweeps.

The table has one row per job in the ledger: its state, step, last validation accuracy, remaining time and folder. Below
it are the number of jobs in each state, and the total remaining time.

States: waiting (in a sweep, not started yet), running, interrupted (stopped by a signal or killed; running the same
sweep again continues it), finished, diverged (running the same sweep again skips it), failed (running the same sweep
again retries it).
"""

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.table import Table
from rich.text import Text

from fullbatch.app.paths import LEDGER, TABLES
from fullbatch.cli.command import command_parser, run_command
from fullbatch.results.job_status import JobStatus, common_overrides, job_statuses
from fullbatch.results.ledger import Ledger, State, lease_of
from fullbatch.runtime.plain_text import PlainConsole, count_of, printable

STYLES = {State.FINISHED: "green", State.RUNNING: "cyan", State.DIVERGED: "magenta", State.FAILED: "red"}
_LONGEST = 1e10  # seconds; times in damaged tables may be anything
WIDTH = 240
"""Width of a table that is not printed to a terminal, in characters."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the status of all jobs; return the exit status."""
    parser = command_parser("status", __doc__)
    parser.add_argument("where", type=Path, nargs="?", help=f"ledger or launch folder; default: {TABLES / LEDGER}")
    states = [state.value for state in State]
    parser.add_argument("--state", action="append", choices=states, help="list only jobs in this state; repeatable")
    parser.add_argument("--forget", metavar="JOB", nargs="+", help="remove jobs, which the same sweep then runs again")
    return run_command(_print_status, parser.parse_args(arguments))


def _print_status(options: Namespace) -> None:
    console = PlainConsole()
    if not console.is_terminal:
        console.width = WIDTH
    ledger = Ledger(find_ledger(options.where))
    statuses = job_statuses(ledger)
    if options.forget:
        _forget(ledger, options.forget, statuses)
        statuses = job_statuses(ledger)
    listed = [status for status in statuses if not options.state or status.state.value in options.state]
    counts = Counter(status.state for status in statuses)
    parts = [f"{counts[state]} {state.value}" for state in State if counts[state]]
    console.print(_table(listed, common_overrides(statuses) if len(statuses) > 1 else set()))
    console.print(f"{count_of(len(statuses), 'job')}: {', '.join(parts)}" if statuses else "no jobs")
    console.print(_remaining_time(statuses))


def find_ledger(path: Path | None) -> Path:
    """Return the ledger at a path: a file, or the one in a launch folder or in a folder of tables."""
    default = TABLES / LEDGER
    candidates = [default] if path is None else [path, path / LEDGER, path / default]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ValueError(f"{path or default}: no ledger here; runs write {default} into their launch folder")


def _forget(ledger: Ledger, jobs: Sequence[str], statuses: Sequence[JobStatus]) -> None:
    states = {status.job: status.state for status in statuses if status.job}
    for job in jobs:
        if job not in states:
            raise ValueError(f"--forget {job}: there is no such job; known: {', '.join(states) or 'none'}")
    for attempt in ledger.attempts():
        if attempt.job in jobs and attempt.state is State.RUNNING:
            raise ValueError(
                f"--forget {attempt.job}: process {attempt.process} on {attempt.host} is running this job; stop it "
                f"first, or, if there is no such process, remove {lease_of(attempt.folder)}"
            )
    ledger.forget(jobs)


def _table(statuses: Sequence[JobStatus], common: set[str]) -> Table:
    table = Table()
    for title in ("job", "name", "overrides", "state", "step", "valid %", "left", "where"):
        table.add_column(title, no_wrap=title not in ("overrides", "where"), overflow="fold")
    for status in statuses:
        overrides = " ".join(text for text in status.overrides if text not in common and not text.startswith("name="))
        where = "" if status.folder is None else os.path.relpath(status.folder)
        if status.message and status.state in (State.FAILED, State.DIVERGED):
            where = f"{where}: {status.message}"
        if status.problem:
            where = f"{where}; {status.problem}"
        table.add_row(
            printable(status.job),
            printable(status.name),
            printable(overrides),
            Text(status.state.value, style=STYLES.get(status.state, "")),
            "" if status.steps is None else f"{status.step}/{status.steps}",
            "" if status.accuracy is None else f"{100 * status.accuracy:.2f}",
            _format_duration(status.seconds_left),
            printable(where),
        )
    return table


def _remaining_time(statuses: Sequence[JobStatus]) -> str:
    seconds = [status.seconds_left for status in statuses]
    if not any(seconds):
        return "no step has been taken: the remaining time is unknown" if None in seconds else "nothing is left to do"
    total = sum(value for value in seconds if value is not None)
    unknown = ", of the jobs whose time is known" if None in seconds else ""
    running = sum(status.state is State.RUNNING for status in statuses)
    in_parallel = f"; {running} at a time: {_format_duration(total / running)}" if running > 1 else ""
    return f"left: about {_format_duration(total)} of computation{unknown}{in_parallel}"


def _format_duration(seconds: float | None) -> str:
    if seconds is None or seconds == 0:
        return ""
    return str(timedelta(seconds=max(1, round(seconds)))) if 0 < seconds < _LONGEST else "unknown"
