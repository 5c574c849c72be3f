"""The scope of one job: its log, its signals, and the exit status of the errors that end it."""

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from fullbatch.app.exit_status import ExitStatus
from fullbatch.data.reading import translate_worker_errors
from fullbatch.runtime.files import format_error
from fullbatch.runtime.logs import job_log, worker_log
from fullbatch.runtime.peer_monitor import PeerLostError
from fullbatch.runtime.process_group import ALONE, Group
from fullbatch.runtime.stop_requests import InterruptedWork, Interruption, interruption
from fullbatch.training.step import DivergedError

log = logging.getLogger(__name__)


@dataclass
class JobScope:
    """What a job needs besides its settings; see ``job_scope``.

    Args:
        console: standard output.
        caught: the signals that have arrived.
        status: the exit status so far.
        note: returns text to append to the message of a mistake or a lost process.
    """

    console: Console
    caught: Interruption
    status: int = ExitStatus.DONE
    note: Callable[[], str] = lambda: ""

    @contextmanager
    def errors(self, group: Group = ALONE) -> Iterator[None]:
        """Turn an error that ends the job into a message and a ``status``.

        Processes other than the main one of a group send it their message instead, and also that of an unexpected
        error, which the main process raises.
        """
        try:
            with translate_worker_errors():
                yield
        except (Exception, KeyboardInterrupt) as raised:
            error = _as_mistake(raised) if is_out_of_memory(raised) else raised
            status = self._status_after(error)
            if status is None and group.is_main:
                raise
            self.status = ExitStatus.FAILED if status is None else status
            self._report(error, traceback.format_exc() if status is None else format_error(error), group)

    def _status_after(self, error: BaseException) -> int | None:
        """Return the exit status after an error; None for an unexpected one."""
        match error:
            case InterruptedWork():
                return self.caught.exit_status
            case PeerLostError():
                return error.status
            case DivergedError():
                return ExitStatus.DIVERGED
            case KeyboardInterrupt():
                return ExitStatus.INTERRUPTED
            case ValueError() | OSError():
                return ExitStatus.MISTAKE
        return None

    def _report(self, error: BaseException, message: str, group: Group) -> None:
        if isinstance(error, KeyboardInterrupt):
            message = "interrupted"
        if isinstance(error, PeerLostError) or group.is_main:
            if not getattr(error, "reported", False):
                level = logging.WARNING if isinstance(error, InterruptedWork) else logging.ERROR
                note = self.note() if isinstance(error, ValueError | OSError | PeerLostError) else ""
                log.log(level, "%s%s", message, note)
                log.debug("where it happened", exc_info=error)
        elif not isinstance(error, DivergedError):  # which all processes raise
            group.report_failure(self.status, message)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the host or the device has too little memory; PyTorch raises ``RuntimeError`` for the host."""
    texts = ("not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


def _as_mistake(error: BaseException) -> ValueError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rpartition("DefaultCPUAllocator: ")[2]
    mistake = ValueError(
        f"not enough memory ({reason}); use a smaller data.batch_size, hyp.sub_batch or model; plan=True estimates the "
        "memory of a run"
    )
    mistake.__cause__ = error
    return mistake


@contextmanager
def job_scope(folder: Path | None, *, catch_signals: bool = True) -> Iterator[JobScope]:
    """Open the log of a job, catch signals, and turn an error that ends the job into a message and an exit status.

    Args:
        folder: where ``log.txt`` goes; None for a process that only logs errors, to the terminal.
        catch_signals: False for a job that has nothing to save and never asks for them.

    Yields the scope, whose ``status`` is final after the block.
    """
    signals = interruption() if catch_signals else nullcontext(Interruption())
    with worker_log() if folder is None else job_log(folder / "log.txt") as terminal, signals as caught:
        scope = JobScope(terminal.out, caught)
        with scope.errors():
            yield scope
