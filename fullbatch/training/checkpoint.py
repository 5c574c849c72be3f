"""Checkpoints: written atomically, read without unpickling anything but tensors and plain containers."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fullbatch.runtime.files import previous_paths, write_atomically

FORMAT = "fullbatch checkpoint"
VERSION = 1


def save_checkpoint(
    path: Path,
    state: dict[str, Any],
    *,
    config: dict[str, Any],
    seed: int,
    command: Sequence[str] = (),
    keep: int = 0,
) -> None:
    """Save a ``TrainState.state_dict()`` with the configuration, the seed and the command line it belongs to."""
    content = {"format": FORMAT, "version": VERSION, "config": config, "seed": seed, "state": state}
    content["command"] = list(command)
    buffer = io.BytesIO()  # a full disk is then an OSError of the file system, not one of torch's own
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer(), keep=keep)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what ``save_checkpoint`` was given, tensors on the CPU.

    Raises ``ValueError`` for a damaged, truncated or foreign file, which is left untouched.
    """
    content = read_pickle(path)
    check_checkpoint(path, content)
    checkpoint: dict[str, Any] = content
    return checkpoint


def check_checkpoint(path: Path, content: Any) -> None:
    """Raise ``ValueError`` unless the content of a file is a checkpoint that this version reads."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: a file of another program, no checkpoint of this one; left untouched")
    if content["version"] != VERSION:
        raise ValueError(f"{path}: checkpoint of format {content['version']}; this version reads format {VERSION}")


def read_pickle(path: Path) -> Any:
    """Return what ``torch.save`` wrote, tensors on the CPU; nothing in the file is called.

    Raises ``ValueError`` where it is damaged or holds more than tensors and plain containers.
    """
    stored = io.BytesIO(path.read_bytes())  # an OSError from here is the file system's, one from below the content's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles: what is not understood is refused
            return torch.load(stored, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or a foreign pickle leads to
        reason = "damaged, truncated, or holds more than tensors and plain containers"
        raise ValueError(f"{path}: no checkpoint of this program ({reason}); left untouched.{_advice(path)}") from error


def find_checkpoint(path: Path) -> Path | None:
    """Return the checkpoint, or the one before it where a crash left only that; None where there is neither."""
    return next((candidate for candidate in (path, *previous_paths(path, 1)) if candidate.exists()), None)


def differences(stored: Any, given: Any, key: str = "") -> list[str]:
    """Return 'key: stored there, given here' for each entry in which two configurations differ."""
    if isinstance(stored, dict) and isinstance(given, dict):
        return [
            line
            for name in dict.fromkeys([*stored, *given])
            for line in differences(stored.get(name), given.get(name), f"{key}.{name}" if key else str(name))
        ]
    return [] if stored == given else [f"{key}: {stored} there, {given} here"]


def _advice(path: Path) -> str:
    previous = [str(candidate) for candidate in previous_paths(path, 1) if candidate.exists()]
    return f" The checkpoint before it is {previous[0]}: rename it to continue from there." if previous else ""
