"""What produced a run: the command line, the program, the libraries and the machine."""

import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fullbatch import __version__
from fullbatch.app.argv import command_line
from fullbatch.runtime.files import write_atomically

RECORD = "run.json"
"""In a run folder: the provenance of the run, and the hash of its job."""


def provenance() -> dict[str, Any]:
    """Return the provenance of a run; outside of a git checkout ``git_revision`` is None."""
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


def write_record(folder: Path, job: str, parent: Mapping[str, Any] | None) -> None:
    """Record in a run folder what produced the run, its job, and the checkpoint that it was forked from."""
    content = json.dumps({**provenance(), "job": job, "parent": parent and dict(parent)}, indent=2) + "\n"
    write_atomically(folder / RECORD, content.encode())


def read_job(folder: Path) -> str | None:
    """Return the hash of the job that a run folder records; None for folders without it, as of earlier versions.

    Raises:
        ValueError: the record is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return None if "job" not in record else str(record["job"])
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not the record of a run ({error})") from error
