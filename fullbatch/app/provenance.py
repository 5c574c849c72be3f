"""What produced a run: the command line, the program, the libraries and the machine."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from fullbatch import __version__
from fullbatch.app.argv import command_line


def provenance() -> dict[str, Any]:
    """Return the content of ``run.json``; outside of a git checkout ``git_revision`` is None."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    return {
        "command": command_line(),
        "git_revision": revision,
        "fullbatch": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.platform(),
    }
