"""What made a run: the command line, the program, the libraries and the machine."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from fullbatch import __version__
from fullbatch.app.hydra_cli import typed


def provenance() -> dict[str, Any]:
    """Return what ``run.json`` says."""
    return {
        "command": typed(),
        "git_revision": _git_revision(),
        "fullbatch": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.platform(),
    }


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # not a git checkout, or no git
