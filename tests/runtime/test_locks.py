"""Locks between processes, and whether a process is alive."""

import errno
import fcntl
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fullbatch.runtime import locks
from fullbatch.runtime.locks import hold_lock, is_alive, is_held, lease


def test_a_lock_is_refused_or_waited_for(tmp_path: Path) -> None:
    path, polls = tmp_path / "folder" / "lock", []
    with hold_lock(path) as waited:
        assert not waited
        with pytest.raises(ValueError, match="it is taken"), hold_lock(path, "it is taken"):
            pass
    held = hold_lock(path)
    held.__enter__()

    def poll() -> None:
        polls.append(1)
        if len(polls) == 2:
            held.__exit__(None, None, None)

    with hold_lock(path, poll=poll) as waited:
        assert waited
    assert len(polls) == 2
    with hold_lock(path, "it is taken"):  # free again
        pass


def test_only_processes_of_this_machine_are_reported_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not is_alive(process.pid, platform.node())
    assert is_alive(process.pid, "elsewhere")
    assert is_alive(os.getpid(), platform.node())
    assert is_alive(1, platform.node())  # mostly the process of another user


NO_LOCKS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL]


def failing(number: int) -> Callable[..., None]:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def holder_of(path: Path, **changes: object) -> Path:
    """Write the file of another holder, where the file system has no locks."""
    path.touch()
    holder = path.with_name(f"{path.name}.holder")
    holder.write_text(json.dumps({**locks._this_process(), **changes}))
    return holder


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number))
    path = tmp_path / "lock"
    with lease(path):
        assert is_held(path)
        with pytest.raises(ValueError, match="another process is using this folder"), lease(path):
            pass
        assert is_held(path)
    assert not is_held(path)
    assert list(tmp_path.iterdir()) == []
    assert f"{tmp_path}: the file system has no locks ({os.strerror(number)})" in caplog.text


@pytest.mark.parametrize(
    ("changes", "age", "held"),
    [
        ({}, 1e6, True),  # this process
        ({"process": 2**22 + 1}, 0, False),
        ({"process": 2**70}, 0, False),
        ({"start": "1"}, 0, False),  # another process has got the number
        ({"host": "elsewhere"}, 0, True),
        ({"host": "elsewhere"}, locks.EXPIRY + 60, False),
        ({"system": "before the restart"}, locks.EXPIRY + 60, False),
    ],
)
def test_holders_without_locks_are_found_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], age: float, held: bool
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOSYS))
    holder = holder_of(tmp_path / "lock", **changes)
    before = time.time() - age
    os.utime(holder, (before, before))
    assert is_held(tmp_path / "lock") == held
    assert sorted(tmp_path.iterdir()) == [tmp_path / "lock", holder]
    if held:
        with pytest.raises(ValueError, match="it is taken"), hold_lock(tmp_path / "lock", "it is taken"):
            pass
    else:
        with hold_lock(tmp_path / "lock", "it is taken"):
            assert is_held(tmp_path / "lock")
    assert holder.exists() == held


def test_a_holder_without_locks_shows_that_it_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOSYS))
    monkeypatch.setattr(locks, "HEARTBEAT", 0.01)
    with hold_lock(tmp_path / "lock"):
        holder = tmp_path / "lock.holder"
        os.utime(holder, (0, 0))
        deadline = time.monotonic() + 10
        while holder.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert holder.stat().st_mtime > 0
        holder.write_text("{}")  # of another process
    assert holder.exists()


def test_other_errors_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "lock"))), hold_lock(tmp_path / "lock"):
        pass


def test_waiting_ends(tmp_path: Path) -> None:
    polls: list[int] = []
    with hold_lock(tmp_path / "lock"):
        start = time.monotonic()
        with (
            pytest.raises(ValueError, match="it is taken"),
            hold_lock(tmp_path / "lock", "it is taken", poll=lambda: polls.append(1), timeout=0.1),
        ):
            pass
        assert 0.1 <= time.monotonic() - start < 5
        assert polls
        descriptors = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ValueError, match="it is taken"), hold_lock(tmp_path / "lock", "it is taken", timeout=0.1):
            pass
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_tests_of_a_lock_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    held = locks._take(path, shared=True)
    assert held is not None
    with held:
        assert not is_held(path)
