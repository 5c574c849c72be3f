"""A run's entry in the ledger, and what a job of a sweep need not do again."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from rich.console import Console
from rich.table import Table

from fullbatch.app.argv import jobs_of_sweep
from fullbatch.app.exit_status import ExitStatus
from fullbatch.app.identity import RunIdentity, content_hash
from fullbatch.app.paths import CHECKPOINT, RunPaths
from fullbatch.app.provenance import provenance, read_job
from fullbatch.app.resume import read_matching
from fullbatch.results.columns import RUN_COLUMNS
from fullbatch.results.ledger import Attempt, JobDescription, Ledger, State, SweepPosition, is_redundant, lease_of
from fullbatch.runtime.files import format_error, move
from fullbatch.runtime.locks import is_alive, lease
from fullbatch.runtime.peer_monitor import PeerLostError
from fullbatch.runtime.plain_text import printable
from fullbatch.runtime.stop_requests import InterruptedWork
from fullbatch.settings import Run
from fullbatch.training.checkpoint import find_checkpoint

log = logging.getLogger(__name__)

SECONDS_OF_CHILDREN = 15.0
"""How long the children of a killed process are waited for, which hold its lease a few seconds longer."""


class LedgerEntry:
    """A context manager: a run's entry in the ledger, from before the run is built until it has ended.

    A job of a sweep is claimed on entering: it may be ``already_done``, else the checkpoint of an interrupted attempt
    is moved into the run folder. A single run is entered when it ``start``s and never counts as already done.

    Args:
        ledger: None where nothing is recorded.
        description: of the job.
        folder: of the run.
        place: of the job in its sweep; None for a single run.
        objection: returns why the checkpoint in the folder of an earlier attempt is not the job's; empty if it is.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        description: JobDescription,
        folder: Path,
        place: SweepPosition | None,
        objection: Callable[[Path], str] = lambda _: "",
    ) -> None:
        self._ledger, self._description, self._folder, self._place = ledger, description, folder, place
        self._objection = objection
        self._lease = ExitStack()
        self._attempt: Attempt | None = None
        self._earlier: Sequence[Attempt] = ()
        self.already_done: Attempt | None = None

    def __enter__(self) -> "LedgerEntry":
        if self._place is not None:
            with self._lease:
                self.start()
                self._lease = self._lease.pop_all()
        return self

    def start(self) -> None:
        """Record that the run is running, unless that is recorded; ``ValueError`` for what is wrong with the ledger."""
        if self._ledger is None or self._attempt is not None:
            return
        self._lease.enter_context(lease(lease_of(self._folder)))
        attempts = self._begin(self._ledger)
        if isinstance(attempts, Attempt):
            self.already_done = attempts
            return
        *self._earlier, self._attempt = attempts
        if self._place is not None and self._earlier and self._earlier[-1].state is not State.DIVERGED:
            _fetch_checkpoint([attempt.folder for attempt in self._earlier], self._folder, self._objection)

    def end(self, state: State, message: str = "", result: Mapping[str, float] | None = None) -> None:
        """Record how the run ended, at once; later calls, and the error that leaves the context, change nothing."""
        if self._ledger is None or self._attempt is None:
            return
        number, self._attempt = self._attempt.number, None
        try:
            self._ledger.end(number, state, message, result or {})
        except (ValueError, OSError) as error:  # the run has ended, and its result is in its table and checkpoint
            message = "%s; there, this run counts as interrupted, and a sweep will look at its checkpoint"
            log.error(message, format_error(error))

    @property
    def was_unfinished(self) -> bool:
        """Whether earlier attempts began and none finished: the row in the table of runs may be missing."""
        return bool(self._earlier) and all(attempt.state is not State.FINISHED for attempt in self._earlier)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        with self._lease:
            self.end(*_end_after(error))

    def _begin(self, ledger: Ledger) -> Attempt | list[Attempt]:
        """Record the attempt; return it after all earlier ones, or the attempt that makes it redundant."""

        def decide(attempts: Sequence[Attempt]) -> Attempt | None:
            return None if self._place is None else is_redundant(attempts, self._description.circumstances)

        deadline = time.monotonic() + SECONDS_OF_CHILDREN
        while True:
            attempts = ledger.begin(self._description, self._folder, self._place, decide)
            if isinstance(attempts, list) or attempts.state is not State.RUNNING or time.monotonic() > deadline:
                return attempts
            if is_alive(attempts.process, attempts.host):  # else its children hold the lease
                return attempts
            time.sleep(0.5)


def enter(run: Run, identity: RunIdentity, paths: RunPaths) -> LedgerEntry:
    """Return the entry of a run that Hydra has started; a dry run is not recorded."""
    hydra = HydraConfig.get()
    description = JobDescription(
        job=identity.job,
        configuration=identity.configuration,
        name=run.name,
        data=run.data.name,
        overrides=tuple(hydra.overrides.task),
        steps=run.hyp.steps,
        circumstances=content_hash([{**provenance(), "command": None}, asdict(run.impl)]),
    )
    if run.dryrun or hydra.mode is not RunMode.MULTIRUN:
        return LedgerEntry(None if run.dryrun else Ledger(paths.ledger), description, paths.folder, None)
    sweep = Path(hydra.runtime.output_dir).absolute().parent
    place = SweepPosition(sweep, int(hydra.job.num), jobs_of_sweep() or [])
    ledger = Ledger(paths.ledger)
    objection = partial(_objection, identity=identity, roots=(ledger.launch_folder, Path(run.base_dir), sweep))
    return LedgerEntry(ledger, description, paths.folder, place, objection)


def _end_after(error: BaseException | None) -> tuple[State, str, Mapping[str, float]]:
    """Return how a run ended that an error has left."""
    if isinstance(error, InterruptedWork):
        return State.INTERRUPTED, str(error), {}
    if error is not None and not isinstance(error, Exception):
        return State.INTERRUPTED, type(error).__name__, {}
    if isinstance(error, ValueError | OSError | PeerLostError):
        return State.FAILED, format_error(error), {}
    return State.FAILED, repr(error), {}


def _fetch_checkpoint(folders: Sequence[Path], folder: Path, objection: Callable[[Path], str]) -> None:
    """Move the newest checkpoint, and its companions, from its run folder into this one."""
    for earlier in reversed(folders):
        if find_checkpoint(earlier / CHECKPOINT) is None:
            continue
        if reason := objection(earlier):  # the ledger is a file, and what it says is no proof
            log.warning("the checkpoint in %s is left there and not continued: %s", earlier, reason)
            continue
        if earlier != folder.absolute():
            # The checkpoint itself goes first: wherever a kill divides the files, the newest one is found.
            files = [path for path in earlier.glob(f"{Path(CHECKPOINT).stem}.*") if path.is_file()]
            for path in sorted(files, key=lambda path: (path.name != CHECKPOINT, path.name)):
                move(path, folder / path.name)
            log.info("the checkpoint is that of %s", earlier)
        return


def _objection(folder: Path, *, identity: RunIdentity, roots: Sequence[Path]) -> str:
    """Return why the checkpoint in ``folder`` is not that of a job which writes below ``roots``; empty if it is.

    Run folders record their job; those of earlier versions have only the checkpoint's configuration and seed.
    """
    if not any(folder.resolve().is_relative_to(root.resolve()) for root in roots):
        return f"the folder is outside of {', '.join(map(str, roots))}"
    if any(path.is_symlink() for path in folder.glob(f"{Path(CHECKPOINT).stem}.*")):
        return "it is a symbolic link"
    try:
        job = read_job(folder)
        newest = read_matching(folder / CHECKPOINT, identity) if job is None else None
        if newest is not None and not newest[1].checkpoint:
            return "it is a file of another program"
    except (ValueError, OSError) as error:
        return format_error(error)
    return "" if job in (None, identity.job) else f"it belongs to job {job}, and this is {identity.job}"


def report_already_done(attempt: Attempt, title: str, console: Console) -> int:
    """Log why a job need not run, with its result; return the exit status of the attempt, 0 where it is running."""
    folder, message = attempt.folder, attempt.message
    if attempt.state is State.DIVERGED:
        log.error("this job diverged before, in %s (%s); nothing has changed that could change that", folder, message)
        return ExitStatus.DIVERGED
    if attempt.state is State.RUNNING:
        message = "this job is running now: process %d on %s, in %s; if there is no such process, remove %s"
        log.warning(message, attempt.process, attempt.host, folder, lease_of(folder))
        return ExitStatus.DONE
    log.info("this job has finished before, in %s (%s); its result:", folder, message)
    show_result(attempt.result, title, console)
    return ExitStatus.DONE


def show_result(result: Mapping[str, float], title: str, console: Console) -> None:
    """Print the result of a run."""
    table = Table(title=printable(title), show_header=False)
    for key, value in result.items():
        unit = RUN_COLUMNS[key].unit if key in RUN_COLUMNS else ""
        table.add_row(key, f"{value:.2%}" if unit == "fraction" else f"{value:.5g}")
    console.print(table)
