"""File locks between processes, and whether a process is alive.

These are locks of the operating system: they end with the process that holds them, also by ``kill -9`` or a power cut.
On several machines the file system must share its locks, as NFS does. filelock is imported when the first lock is
taken, because models of ``torch.hub`` need torch alone.
"""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_POLL = 0.5  # seconds between two attempts


@contextmanager
def hold_lock(path: Path, refusal: str = "", *, poll: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock file ``path`` inside the block; yield whether another process had to be waited for.

    Args:
        path: the lock file, created with its folder where it is missing.
        refusal: message of the ``ValueError`` that is raised when another process holds the lock.
        poll: called every half second while another process holds the lock, which is then waited for.
    """
    from filelock import FileLock, Timeout  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    lock, waited = FileLock(path), False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_POLL if waited else 0)
        except Timeout:
            if poll is None:
                raise ValueError(refusal) from None
            poll()
            waited = True
    try:
        yield waited
    finally:
        lock.release()


@contextmanager
def lease(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` inside the block and remove it afterwards.

    Raises:
        ValueError: another process holds it.
    """
    with hold_lock(path, f"{path}: another process is using this folder"):
        try:
            yield
        finally:
            with suppress(OSError):  # some systems refuse to remove an open file
                path.unlink()


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep other processes from claiming the checkpoint ``path`` inside the block.

    Raises:
        ValueError: another process has claimed it.
    """
    with hold_lock(path.with_name(f".{path.name}.lock"), f"{path}: another run is using this checkpoint"):
        yield


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock file ``path``; True where this cannot be tested."""
    from filelock import FileLock, Timeout  # noqa: PLC0415

    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except (Timeout, PermissionError):
        return True
    except OSError:
        return path.exists()  # False: its holder has just removed it
    lock.release()
    return False


def is_alive(process: int, host: str) -> bool:
    """Return whether the process number ``process`` of ``host`` is alive; True where ``host`` is not this machine."""
    if host != platform.node() or os.name != "posix":  # elsewhere os.kill would end the process
        return True
    try:
        os.kill(process, 0)
    except OSError as error:  # PermissionError: the process of another user
        return not isinstance(error, ProcessLookupError)
    return True
