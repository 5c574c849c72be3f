"""What ends a job: a message and an exit status for every error that is no bug."""

import errno
import logging
import re
import signal
from pathlib import Path

import pytest
import torch

from fullbatch.app.exit_status import ExitStatus, ends_sweep
from fullbatch.app.job_scope import job_scope
from fullbatch.runtime.peer_monitor import LOST, PeerLostError
from fullbatch.runtime.process_group import Group
from fullbatch.runtime.ranks import Ranks
from fullbatch.runtime.stop_requests import InterruptedWork
from fullbatch.training.step import DivergedError

ERRORS: list[tuple[BaseException, int, str]] = [
    (ValueError("hyp.steps: wrong"), 2, "hyp.steps: wrong; see x.pth"),
    (
        OSError(errno.ENOSPC, "No space left", "x.pth"),
        2,
        "x.pth: no space left (free some space, then repeat the command); see",
    ),
    (RuntimeError("DataLoader worker (pid 7) is killed."), 2, "a process that reads images has died"),
    (PeerLostError("process 1 is gone"), LOST, "process 1 is gone; see x.pth"),
    (DivergedError("step 3 is not finite"), 3, "step 3 is not finite\n"),
    (KeyboardInterrupt(), 130, "interrupted\n"),
    (MemoryError(), 2, "not enough memory (MemoryError); use a smaller data.batch_size, hyp.sub_batch or model"),
    (torch.OutOfMemoryError("CUDA out of memory."), 2, "not enough memory (CUDA out of memory.); use a smaller"),
]


@pytest.mark.parametrize(("error", "status", "message"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_is_a_message_and_a_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, message: str
) -> None:
    with job_scope(tmp_path) as scope:
        scope.note = lambda: "; see x.pth"
        raise error
    assert scope.status == status
    assert capsys.readouterr().err.startswith(message)
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_an_allocation_that_fails_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with job_scope(tmp_path) as scope:
        torch.empty(1 << 50)
    assert scope.status == ExitStatus.MISTAKE
    assert re.match(
        r"not enough memory \(.*you tried to allocate \d+ bytes.*\); use a smaller", capsys.readouterr().err
    )


def test_a_signal_ends_work_with_its_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with job_scope(tmp_path) as scope:
        scope.caught.receive(signal.SIGTERM, None)
        raise InterruptedWork("stopped while reading")
    assert scope.status == 128 + signal.SIGTERM
    assert "stopped while reading\n" in capsys.readouterr().err


def test_a_bug_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), job_scope(tmp_path):
        raise ZeroDivisionError
    assert logging.getLogger("fullbatch").handlers == []


class Worker(Group):
    """A process that sends its failures to the list ``sent``."""

    def report_failure(self, status: int, message: str) -> None:
        sent.append((status, message))


sent: list[tuple[int, str]] = []


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("wrong"), 2, "wrong"),
        (ZeroDivisionError("bug"), 1, "Traceback"),
        (DivergedError("all processes raise it"), 3, None),
        (PeerLostError("the run has ended", 3, reported=True), 3, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_worker_sends_its_errors_to_the_main_process(
    capsys: pytest.CaptureFixture[str], error: Exception, status: int, message: str | None
) -> None:
    sent.clear()
    with job_scope(None) as scope, scope.errors(Worker(Ranks(1, 2))):
        raise error
    assert scope.status == status
    assert [(code, text.splitlines()[0].split()[0]) for code, text in sent] == ([(status, message)] if message else [])
    assert capsys.readouterr().err == ""


def test_exit_statuses_of_shells_and_signals() -> None:
    assert [int(status) for status in ExitStatus] == [0, 1, 2, 3, 4, 130]
    assert ExitStatus.LOST == LOST
    assert [status for status in (0, 1, 2, 3, 4, 130, 143) if ends_sweep(status)] == [4, 130, 143]
