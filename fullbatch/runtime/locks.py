"""Leases: a file that one process holds as long as it lives, so that others know whether it does.

They are locks of the operating system. However a process ends, by ``kill -9`` or a power cut, its leases end with it;
no clock, process number or heartbeat is asked. On several machines the file system must share its locks, as NFS does.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def lease(path: Path) -> Iterator[None]:
    """Hold the lease meanwhile; the file is gone afterwards. ``ValueError`` where another process holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(f"{path}: another process is using this folder now") from None
    try:
        yield
    finally:
        with suppress(OSError):  # some systems keep a file that is open
            path.unlink()
        lock.release()


def is_held(path: Path) -> bool:
    """Return whether some process holds the lease; where that cannot be tried, suppose that one does."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except (Timeout, PermissionError):
        return True
    except OSError:
        return path.exists()  # it was given back just now, or may not be tried
    lock.release()
    return False
