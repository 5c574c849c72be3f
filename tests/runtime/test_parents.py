"""Processes that end with their parent, however that ends."""

import os
import signal
import subprocess
import sys

import pytest

CHILD = """
import sys, time
from fullbatch.runtime.parents import end_with_parent
print("watching", flush=True)
end_with_parent(int(sys.argv[1]), grace=0.0)
time.sleep(float(sys.argv[2]))
print("done")
"""
PARENT = f"""
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", {CHILD!r}, str(os.getpid()), "100"]).wait()
"""


@pytest.mark.parametrize("dead", [False, True], ids=["killed", "dead already"])
def test_a_child_ends_after_its_parent(dead: bool) -> None:
    command = ["-c", CHILD, "999999999", "100"] if dead else ["-c", PARENT]
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        if not dead:
            process.send_signal(signal.SIGKILL)
        assert process.stdout.read() == ""  # the child has closed its output: it has ended
        assert process.wait(30) == (1 if dead else -signal.SIGKILL)


def test_a_child_with_a_parent_goes_on() -> None:
    command = [sys.executable, "-c", CHILD, str(os.getpid()), "1.5"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "watching\ndone\n"
