"""Jobs and the ledger: what makes two runs the same job, and what a job of a sweep need not do again."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from rich.console import Console
from rich.table import Table

from fullbatch.app.hydra_cli import DIVERGED, DONE, jobs_of, typed
from fullbatch.app.provenance import provenance
from fullbatch.app.resume import OF_THE_FILE
from fullbatch.results.ledger import Attempt, Description, Ledger, Place, State, is_redundant, lease_of
from fullbatch.runtime.device import DTYPES
from fullbatch.runtime.files import move
from fullbatch.runtime.locks import is_alive, lease
from fullbatch.settings import Run
from fullbatch.training.checkpoint import find_checkpoint

log = logging.getLogger(__name__)

LEDGER = "ledger.sqlite"
SECONDS_OF_CHILDREN = 15.0
CHECKPOINT = "checkpoint.pth"
"""Of a run without ``impl.checkpoint.name``, in its folder."""


def content_hash(content: Any) -> str:
    """Return 12 hexadecimal digits (48 bits) of the SHA-256 of plain containers, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def configuration_hash(run: Run, identity: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the hash of what determines the numbers of a run but for its seed.

    That is what a checkpoint belongs to (``identity``: data, model, hyp), the number of steps, what is measured and the
    arithmetic. Of ``impl`` nothing else counts: threads, device or memory format change numbers by rounding at most.
    """
    data = dict(identity["data"])
    if isinstance(data.get("db"), Mapping):
        data["db"] = {key: value for key, value in data["db"].items() if key not in OF_THE_FILE}
    dtypes = [str(DTYPES[name]) for name in (run.impl.dtype, run.impl.accumulation_dtype)]
    arithmetic = [*dtypes, run.impl.mixed_precision, *([run.impl.grad_scaling] if run.impl.grad_scaling else [])]
    return content_hash([{**identity, "data": data}, run.hyp.steps, vars(run.analysis), arithmetic])


def describe_job(
    run: Run, identity: Mapping[str, Mapping[str, Any]], overrides: Sequence[str], circumstances: Any
) -> Description:
    """Return what the ledger knows a run by: its configuration, name and seed; a blank seed counts as that."""
    configuration = configuration_hash(run, identity)
    return Description(
        job=content_hash([configuration, run.name, run.seed]),
        configuration=configuration,
        name=run.name,
        data=run.data.name,
        overrides=tuple(overrides),
        steps=run.hyp.steps,
        circumstances=content_hash(circumstances),
    )


class LedgerEntry:
    """A run's entry in the ledger; entered before the run is built, and left when it has ended.

    In a sweep the job is claimed on entering: it may be ``settled`` already, else the checkpoint of an interrupted
    attempt is brought into the run folder. A run by hand is noted when it ``start``s, and is never settled: who issues
    one wants it.

    Args:
        ledger: None where nothing is to be noted.
        what: the job.
        folder: of the run.
        place: of the job in its sweep; None for a run by hand.
    """

    def __init__(self, ledger: Ledger | None, what: Description, folder: Path, place: Place | None) -> None:
        self._ledger, self._what, self._folder, self._place = ledger, what, folder, place
        self._held = ExitStack()
        self._attempt: Attempt | None = None
        self._end: tuple[State, str, Mapping[str, float]] | None = None
        self._last_error = _LastError()
        self.settled: Attempt | None = None
        self.before: Sequence[Attempt] = ()

    def __enter__(self) -> "LedgerEntry":
        logging.getLogger("fullbatch").addHandler(self._last_error)
        try:
            if self._place is not None:
                self.start()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def start(self) -> None:
        """Note that the run runs, unless it has been noted; ``ValueError`` for what is wrong with the ledger."""
        if self._ledger is None or self._attempt is not None:
            return
        self._held.enter_context(lease(lease_of(self._folder)))
        found = self._begin(self._ledger)
        if isinstance(found, Attempt):
            self.settled = found
            return
        *self.before, self._attempt = found
        if self._place is not None and self.before and self.before[-1].state is not State.DIVERGED:
            _fetch_checkpoint(self.before, self._folder)

    def end(self, state: State, message: str = "", result: Mapping[str, float] | None = None) -> None:
        """Say how the run ended; a run that says nothing has failed."""
        self._end = (state, message, result or {})

    @property
    def cut_short(self) -> bool:
        """Whether the job has been begun before, and never ended: its row in the table of runs may be missing."""
        return bool(self.before) and all(attempt.state is not State.FINISHED for attempt in self.before)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        logging.getLogger("fullbatch").removeHandler(self._last_error)
        with self._held:
            if self._ledger is None or self._attempt is None:
                return
            try:
                self._ledger.end(self._attempt.number, *self._how_it_ended(error))
            except ValueError as refused:  # the run has ended, and what it came to is in its table and checkpoint
                log.error("%s; there, this run counts as interrupted, and a sweep will look at its checkpoint", refused)

    def _begin(self, ledger: Ledger) -> Attempt | list[Attempt]:
        """Note the attempt; wait for the children of a killed process, which hold its lease some seconds longer."""
        deadline = time.monotonic() + SECONDS_OF_CHILDREN
        while True:
            found = ledger.begin(self._what, self._folder, self._place, self._decide)
            if isinstance(found, list) or not _killed(found) or time.monotonic() > deadline:
                return found
            time.sleep(0.5)

    def _how_it_ended(self, error: BaseException | None) -> tuple[State, str, Mapping[str, float]]:
        if error is None and self._end is not None:
            return self._end
        if error is not None and not isinstance(error, Exception):
            return State.INTERRUPTED, type(error).__name__, {}
        return State.FAILED, self._last_error.message if error is None else repr(error), {}

    def _decide(self, attempts: Sequence[Attempt]) -> Attempt | None:
        return None if self._place is None else is_redundant(attempts, self._what.circumstances)


def _killed(attempt: Attempt) -> bool:
    """Return whether the process of an attempt whose lease is held is gone from this machine."""
    return attempt.state is State.RUNNING and not is_alive(attempt.process, attempt.host)


def enter(run: Run, identity: Mapping[str, Mapping[str, Any]], folder: Path, ledger: Path) -> LedgerEntry:
    """Return the entry of this run of Hydra's; a dry run is noted nowhere."""
    hydra = HydraConfig.get()
    circumstances = [{**provenance(), "command": None}, asdict(run.impl)]
    what = describe_job(run, identity, hydra.overrides.task, circumstances)
    if run.dryrun or hydra.mode is not RunMode.MULTIRUN:
        return LedgerEntry(None if run.dryrun else Ledger(ledger), what, folder, None)
    sweep = Path(hydra.runtime.output_dir).absolute().parent
    return LedgerEntry(Ledger(ledger), what, folder, Place(sweep, int(hydra.job.num), jobs_of(typed()[1:])))


class _LastError(logging.Handler):
    """Remembers the last error that was logged: what a failed run said."""

    message = ""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        self.message = record.getMessage()


def _fetch_checkpoint(attempts: Sequence[Attempt], folder: Path) -> None:
    """Move the newest checkpoint of these attempts, and what belongs to it, from its run folder into this one."""
    for attempt in reversed(attempts):
        if find_checkpoint(attempt.folder / CHECKPOINT) is None:
            continue
        if attempt.folder != folder.absolute():
            # The checkpoint itself goes first: wherever a kill divides them, it is the newest that is found.
            files = attempt.folder.glob(f"{Path(CHECKPOINT).stem}*")
            for path in sorted(files, key=lambda path: (path.name != CHECKPOINT, path.name)):
                move(path, folder / path.name)
            log.info("the checkpoint is that of %s", attempt.folder)
        return


def settled(attempt: Attempt, title: str, console: Console) -> int:
    """Say why a job need not run, with its result; return the exit status that it had, 0 where it runs elsewhere."""
    where = attempt.folder
    if attempt.state is State.DIVERGED:
        log.error(
            "this job diverged before, in %s (%s); nothing that could change that has changed", where, attempt.message
        )
        return DIVERGED
    if attempt.state is State.RUNNING:
        log.warning("this job is running now: process %d on %s, in %s", attempt.process, attempt.host, where)
        return DONE
    log.info("this job has finished before, in %s (%s); its result:", where, attempt.message)
    show(attempt.result, title, console)
    return DONE


def show(summary: Mapping[str, float], title: str, console: Console) -> None:
    """Print what a run came to."""
    table = Table(title=title, show_header=False)
    for key, value in summary.items():
        percent = key.endswith(("acc", "share")) or key.startswith("valid_acc")
        table.add_row(key, f"{value:.2%}" if percent else f"{value:.5g}")
    console.print(table)
