"""File locks between processes, and whether a process is alive.

These are locks of the operating system: they end with the process that holds them, also by ``kill -9`` or a power cut.
On several machines the file system must share its locks, as NFS does. Where the file system has no locks, a file beside
the lock file names the holder. It ends with its process, too, on the same machine; for other machines, when the holder
has not updated it for ``EXPIRY``.
"""

import errno
import json
import logging
import os
import platform
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_POLL = 0.05  # seconds between two attempts
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_TAKEN = (errno.EAGAIN, errno.EACCES)
HEARTBEAT, EXPIRY = 20.0, 300.0
"""Seconds between two updates of the holder's file, and after which a holder on another machine counts as dead."""


@contextmanager
def hold_lock(
    path: Path, refusal: str = "", *, poll: Callable[[], None] | None = None, timeout: float | None = None
) -> Iterator[bool]:
    """Hold the lock file ``path`` inside the block; yield whether another process had to be waited for.

    Args:
        path: the lock file, created with its folder where it is missing.
        refusal: message of the ``ValueError`` that is raised when another process holds the lock.
        poll: called 20 times a second while another process holds the lock, which is then waited for.
        timeout: seconds after which waiting ends with the refusal; blank: without ``poll`` at once, else never.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    start, waited = time.monotonic(), False
    while (held := _take(path)) is None:
        left = (0.0 if poll is None else _POLL) if timeout is None else start + timeout - time.monotonic()
        if left <= 0:
            raise ValueError(refusal)
        if poll is not None:
            poll()
        time.sleep(min(left, _POLL))
        waited = True
    with held:
        yield waited


@contextmanager
def lease(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` inside the block and remove it afterwards.

    Raises:
        ValueError: another process holds it.
    """
    # A process that tests whether the lock is held takes it for a moment.
    with hold_lock(path, f"{path}: another process is using this folder", timeout=0.2):
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
    if not path.exists():
        return False
    try:
        held = _take(path, shared=True)
        if held is not None:
            held.close()
        return held is None
    except PermissionError:
        return True
    except OSError:
        return path.exists()  # False: its holder has just removed it


@cache
def has_record_locks(folder: Path) -> bool:
    """Return whether the file system has the locks that SQLite takes; True where this cannot be tested."""
    if sys.platform == "win32":
        return True
    import fcntl  # noqa: PLC0415 (not on every system)

    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _UNSUPPORTED
    return True


def is_alive(process: int, host: str) -> bool:
    """Return whether the process number ``process`` of ``host`` is alive; True where ``host`` is not this machine."""
    if host != platform.node() or os.name != "posix":  # elsewhere os.kill would end the process
        return True
    try:
        os.kill(process, 0)
    except OverflowError:
        return False
    except OSError as error:  # PermissionError: the process of another user
        return not isinstance(error, ProcessLookupError)
    return process > 0


def _take(path: Path, *, shared: bool = False) -> ExitStack | None:
    """Take the lock without waiting, and return what releases it; None if another process holds it.

    A ``shared`` lock, of a file that exists, is refused while another process holds one that is not. ``OSError`` names
    the file.
    """
    if sys.platform == "win32":
        from filelock import FileLock, Timeout  # noqa: PLC0415 (models of torch.hub need torch alone)

        with ExitStack() as held, suppress(Timeout):
            held.enter_context(FileLock(path).acquire(blocking=False))
            return held.pop_all()
        return None
    import fcntl  # noqa: PLC0415 (not on every system)

    flags = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT
    with ExitStack() as held:
        file = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        held.callback(os.close, file)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                return None
            if error.errno not in _UNSUPPORTED:
                raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
            _warn_of_missing_locks(path.parent, error.errno)
            return _take_without_locks(path.with_name(f"{path.name}.holder"), shared=shared)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):  # else a holder has just removed the file
                return held.pop_all()
    return None


@cache
def _warn_of_missing_locks(folder: Path, number: int) -> None:
    log.warning("%s: the file system has no locks (%s); files named *.holder replace them", folder, os.strerror(number))


def _take_without_locks(path: Path, *, shared: bool) -> ExitStack | None:
    """Create the file that names the holder, unless there is one and its process may be alive."""
    content = json.dumps({**_this_process(), "key": secrets.token_hex(8)})
    for _ in range(2):
        with suppress(FileNotFoundError):  # the holder, or another process that found it dead, has removed the file
            holder = path.read_text(encoding="utf-8")
            if _may_be_alive(path, holder):
                return None
            if not shared:
                _move_away(path, holder)
        if shared:
            return ExitStack()
        with suppress(FileExistsError):
            with path.open("x", encoding="utf-8") as file:
                file.write(content)
            held = ExitStack()
            held.callback(_move_away, path, content)
            held.enter_context(_heartbeat(path))
            return held
    return None


def _move_away(path: Path, content: str) -> None:
    """Remove the file if it has this content; at once, so that no other process's file is removed."""
    moved = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        path.rename(moved)
        if moved.read_text(encoding="utf-8") == content:
            moved.unlink()
        else:
            moved.rename(path)


def _may_be_alive(path: Path, holder: str) -> bool:
    try:
        process: dict[str, Any] = json.loads(holder)
        here = _this_process()
        if all(process[key] == here[key] for key in ("host", "system")):
            return is_alive(process["process"], process["host"]) and _start_of(process["process"]) == process["start"]
    except (ValueError, KeyError, TypeError):
        pass  # not written completely yet, or damaged: its age decides
    now = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    now.touch()  # the clock of the file system, which also wrote the other time
    try:
        return now.stat().st_mtime - path.stat().st_mtime < EXPIRY
    finally:
        now.unlink()


@contextmanager
def _heartbeat(path: Path) -> Iterator[None]:
    ended = threading.Event()

    def update() -> None:
        while not ended.wait(HEARTBEAT):
            with suppress(OSError):
                os.utime(path)

    threading.Thread(target=update, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _this_process() -> dict[str, Any]:
    """Return what identifies this process among those of all machines, containers and times since a machine started."""
    process, system = os.getpid(), ""
    with suppress(OSError):
        system = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        system += os.readlink("/proc/self/ns/pid")
    return {"host": platform.node(), "system": system, "process": process, "start": _start_of(process)}


def _start_of(process: int) -> str:
    """Return the start time of a process in ticks since the machine started; empty where this is unknown."""
    with suppress(OSError, IndexError):
        return (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    return ""
