"""A console that is closed, full or knows few characters ends no command."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from composing import ROOT

from fullbatch.runtime.console import console_streams

PRINT = """
import os, sys
from fullbatch.runtime.console import console_streams, output_is_lost
with console_streams():
    print("\u00e9")
    print("warning", file=sys.stderr)
    opened = os.open(os.devnull, os.O_RDONLY)
    status = 7 if output_is_lost() else opened
sys.exit(status)
"""


def printing(**options: Any) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", PRINT], env=environment, text=True, check=False, **options)


def test_characters_that_the_encoding_lacks_are_escaped() -> None:
    ended = printing(capture_output=True)
    assert (ended.stdout, ended.stderr) == ("\\xe9\n", "warning\n")


def test_a_full_console_is_noticed() -> None:
    with Path("/dev/full").open("w") as full:
        ended = printing(stdout=full, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (7, "warning\nstandard output: no space left on device\n")


def test_a_reader_that_has_left_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = printing(stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (3, "warning\n")


def test_the_descriptors_of_closed_streams_go_to_no_file() -> None:
    ended = printing(preexec_fn=lambda: os.closerange(0, 3))
    assert ended.returncode == 3  # the descriptor of the file that is opened next


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_lost_terminal_is_survived_and_handlers_stay() -> None:
    with console_streams(survive_hangup=True):
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    handler = signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        with console_streams(survive_hangup=True):
            assert callable(signal.getsignal(signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, handler)


def test_streams_of_others_stay() -> None:
    stream = sys.stdout
    with console_streams():
        assert sys.stdout is stream
