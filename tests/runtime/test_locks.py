"""Locks between processes, and whether a process is alive."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fullbatch.runtime.locks import hold_lock, is_alive


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
