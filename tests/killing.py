"""Runs a script and kills it, with no chance to clean up, at a chosen moment.

    python killing.py MOMENT COUNT SCRIPT ARGUMENTS...

Moments, each the COUNT-th of its kind: ``torn``, half of a file is written; ``written``, all of it, not yet
synchronized; ``linked``, the file before it has its second name; ``renamed``, the file has its own; ``late``, COUNT
twentieths of a second after the first file.
"""

import os
import runpy
import signal
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOMENTS = ("torn", "written", "linked", "renamed", "late")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(
    function: Callable[..., Any],
    count: int,
    at: Callable[..., object],
    after: bool,
    counts: Callable[..., bool] = lambda *_: True,
) -> Callable[..., Any]:
    """The function, whose ``count``-th call that ``counts`` is the last: before it, or after it, ``at`` happens."""
    calls = 0

    def wrapper(*arguments: Any) -> Any:
        nonlocal calls
        if not counts(*arguments):
            return function(*arguments)
        calls += 1
        if calls == count and not after:
            at(*arguments)
        result = function(*arguments)
        if calls == count and after:
            at(*arguments)
        return result

    return wrapper


def is_checkpoint(descriptor: int) -> bool:
    """Folders and tables are synchronized, too; of them all, checkpoints are the large ones."""
    status = os.fstat(descriptor)
    return stat.S_ISREG(status.st_mode) and status.st_size > 50_000


def tear(descriptor: int) -> None:
    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    die()


def arrange(moment: str, count: int) -> None:
    if moment == "torn":
        os.fsync = dying(os.fsync, count, tear, after=False, counts=is_checkpoint)
    elif moment == "written":
        os.fsync = dying(os.fsync, count, lambda _: die(), after=False, counts=is_checkpoint)
    elif moment == "linked":
        os.link = dying(os.link, count, lambda *_: die(), after=True)
    elif moment == "renamed":
        Path.replace = dying(Path.replace, count, lambda *_: die(), after=True)  # type: ignore[method-assign]
    elif moment == "late":
        timer = threading.Timer(count / 20, die)
        timer.daemon = True
        os.fsync = dying(os.fsync, 1, lambda _: timer.start(), after=False)
    else:
        raise ValueError(moment)


if __name__ == "__main__":
    arrange(sys.argv[1], int(sys.argv[2]))
    sys.argv = sys.argv[3:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
