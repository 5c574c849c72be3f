"""Checkpoints by their names, with the configuration that belongs to them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fullbatch.config import with_stored
from fullbatch.training.checkpoint import differences, find_checkpoint, load_checkpoint

log = logging.getLogger(__name__)


def checkpoint_path(name: str) -> Path:
    """Return where the checkpoint ``impl.checkpoint.name`` is."""
    return Path("checkpoints") / (name if name.endswith((".pth", ".pt")) else f"{name}.pth")


def restored(tree: dict[str, Any], name: str, typed: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration of the checkpoint, changed by what was typed, and the content of its file.

    Args:
        tree: the composed configuration.
        name: of the checkpoint.
        typed: the overrides of the command line, which win; each that differs from the checkpoint's is logged.

    Raises:
        ValueError: there is no such checkpoint, or it cannot be read.
    """
    path = find_checkpoint(checkpoint_path(name))
    if path is None:
        raise ValueError(f"impl.checkpoint.name={name}: there is no file {checkpoint_path(name)}")
    content = load_checkpoint(path)
    merged = with_stored(tree, content["config"], typed)
    for group, stored in content["config"].items():
        for line in differences(stored, {key: merged[group].get(key) for key in stored}, group):
            log.info("not as in the checkpoint: %s", line)
    return merged, content
