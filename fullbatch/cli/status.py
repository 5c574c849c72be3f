"""Where runs and sweeps stand: ``python -m fullbatch.cli.status [LEDGER or FOLDER]``.

Prints a line a job that the ledger knows: its state, its step, the last validation accuracy, the time that it will
still take, and its folder; then how many are in which state.

States: waiting (of a sweep, its turn has not come), running, interrupted (paused by a signal, or killed; the same sweep
again continues it), finished, diverged (skipped by the same sweep), failed (tried again by the same sweep).
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fullbatch.app.paths import LEDGER
from fullbatch.results.job_status import JobStatus, common, job_statuses
from fullbatch.results.ledger import Ledger, State
from fullbatch.runtime.files import format_error

STYLES = {State.FINISHED: "green", State.RUNNING: "cyan", State.DIVERGED: "magenta", State.FAILED: "red"}
MISTAKE = 2
WIDTH = 240
"""Of the table where it does not go to a terminal, in characters."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print where it stands; return the exit status: 0, or 2 for a mistake."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    try:
        ledger = Ledger(ledger_at(options.where))
        found = job_statuses(ledger)
        if options.forget:
            _forget(ledger, options.forget, found)
            found = job_statuses(ledger)
    except (ValueError, OSError) as error:
        message = format_error(error) if isinstance(error, OSError) else str(error)
        Console(file=sys.stderr, soft_wrap=True, highlight=False).print(message, markup=False)
        return MISTAKE
    shown = [standing for standing in found if not options.state or standing.state.value in options.state]
    shared = common(standing.overrides for standing in found) if len(found) > 1 else set()
    console.print(_table(shown, shared))
    console.print(_counts(found), _remaining(found), sep="\n", markup=False)
    return 0


def ledger_at(where: Path | None) -> Path:
    """Return the ledger: a file, or that of a launch folder or of its folder of tables; ``ValueError`` without one."""
    places = [Path("tables") / LEDGER] if where is None else [where, where / LEDGER, where / "tables" / LEDGER]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(f"{where or places[0]}: no ledger here; runs write tables/{LEDGER} where they are launched")
    return found


def _forget(ledger: Ledger, jobs: Sequence[str], found: Sequence[JobStatus]) -> None:
    states = {standing.job: standing.state for standing in found if standing.job}
    for job in jobs:
        if job not in states:
            raise ValueError(f"--forget {job}: there is no such job; known: {', '.join(states) or 'none'}")
        if states[job] is State.RUNNING:
            raise ValueError(f"--forget {job}: this job is running now")
    ledger.forget(jobs)


def _table(found: Sequence[JobStatus], shared: set[str]) -> Table:
    table = Table()
    for title in ("job", "name", "overrides", "state", "step", "valid %", "left", "where"):
        table.add_column(title, no_wrap=title not in ("overrides", "where"), overflow="fold")
    for one in found:
        overrides = " ".join(text for text in one.overrides if text not in shared and not text.startswith("name="))
        state = one.state.value
        table.add_row(
            one.job,
            one.name,
            overrides,
            f"[{STYLES[one.state]}]{state}[/]" if one.state in STYLES else state,
            "" if one.steps is None else f"{one.step}/{one.steps}",
            "" if one.accuracy is None else f"{100 * one.accuracy:.2f}",
            _duration(one.seconds_left),
            _where(one),
        )
    return table


def _where(one: JobStatus) -> str:
    folder = "" if one.folder is None else os.path.relpath(one.folder)
    with_message = one.message and one.state in (State.FAILED, State.DIVERGED)
    return f"{folder}: {one.message}" if with_message else folder


def _counts(found: Sequence[JobStatus]) -> str:
    counts = Counter(one.state for one in found)
    parts = [f"{counts[state]} {state.value}" for state in State if counts[state]]
    return f"{len(found)} jobs: {', '.join(parts)}" if found else "no jobs"


def _remaining(found: Sequence[JobStatus]) -> str:
    left = [one.seconds_left for one in found]
    if not any(left):
        return "nothing is left to do" if None not in left else "no step has been taken: the time left is not known"
    total = sum(seconds for seconds in left if seconds is not None)
    unknown = ", of those whose times are known" if None in left else ""
    running = sum(one.state is State.RUNNING for one in found)
    at_once = f"; {running} at a time: {_duration(total / running)}" if running > 1 else ""
    return f"left: about {_duration(total)} of computation{unknown}{at_once}"


def _duration(seconds: float | None) -> str:
    return "" if seconds is None or seconds == 0 else str(timedelta(seconds=max(1, round(seconds))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fullbatch.cli.status", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("where", type=Path, nargs="?", help=f"a ledger or a launch folder; tables/{LEDGER} by default")
    states = [state.value for state in State]
    parser.add_argument("--state", action="append", choices=states, help="show these alone; may be given several times")
    parser.add_argument("--forget", metavar="JOB", nargs="+", help="forget jobs: the same sweep runs them again")
    return parser


if __name__ == "__main__":
    sys.exit(main())
