"""The script as a user runs it, in this process (fast) or in a new one."""

import csv
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from composing import ROOT
from hydra.core.global_hydra import GlobalHydra

from fullbatch.app import train

SCRIPT = ROOT / "train_with_gradient_descent.py"
SMALL = [
    "data=digits",
    "data.size=60",
    "data.valid_size=40",
    "data.batch_size=20",
    "model=resnet20",
    "model.width=4",
    "hyp=gradreg",
    "hyp.steps=4",
    "hyp.warmup=2",
    "hyp.optim.lr=0.1",
    "impl.device=cpu",
    "impl.threads=1",
    "seed=1",
]
"""A run of a second or two."""

Script = Callable[..., int]


def run_in_process(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str, script: Path = SCRIPT, drawn: bool = False
) -> int:
    """Run the script with ``folder`` as the launch folder and return its exit status.

    Unless ``drawn``, which takes a second, the figure of the curves is an empty file.
    """
    if not drawn:
        monkeypatch.setattr(train, "draw_curves", lambda rows, path, title: path.touch())
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    GlobalHydra.instance().clear()
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):  # as Python ends
            sys.stderr.write(f"{ended.code}\n")
            return 1
        return ended.code or 0
    finally:
        GlobalHydra.instance().clear()
    return 0


def rows_of(path: Path) -> list[dict[str, str]]:
    """Read a table of a run."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def start(folder: Path, *arguments: str, program: tuple[str, ...] = (str(SCRIPT),)) -> "subprocess.Popen[str]":
    """Start the script, or another program of Python, in a new process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def signal_when(process: "subprocess.Popen[str]", ready: Callable[[], bool], number: signal.Signals) -> str:
    """Send a signal as soon as ``ready``, and return all that the process printed."""
    deadline = time.monotonic() + 120
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate()[0])
        time.sleep(0.02)
    process.send_signal(number)
    return process.communicate(timeout=120)[0]
