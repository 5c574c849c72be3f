"""Checkpoints by their names, with the configuration that belongs to them."""

import filecmp
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fullbatch.models.model_file import StoredModel, read_model
from fullbatch.settings.parse import with_stored
from fullbatch.training.checkpoint import differences, find_checkpoint

log = logging.getLogger(__name__)

OF_THE_FILE = (
    *("path", "rebuild_existing_database", "temporary_database", "write_frequency", "shuffle_while_writing"),
    *("max_readers", "readahead", "meminit", "max_spare_txns", "access"),
)
"""Of ``data.db``: how its file is written, found and read, not what is in it."""
NO_MATTER = tuple(f"data.db.{key}:" for key in OF_THE_FILE)
"""Keys that a checkpoint keeps, but that its run may continue without."""


def checkpoint_path(name: str) -> Path:
    """Return where the checkpoint ``impl.checkpoint.name`` is."""
    return Path("checkpoints") / (name if name.endswith((".pth", ".pt")) else f"{name}.pth")


def restored(tree: dict[str, Any], name: str, typed: Sequence[str]) -> tuple[dict[str, Any], StoredModel]:
    """Return the configuration of the checkpoint, changed by what was typed, and what its file holds.

    A file of another program says nothing of its configuration: that is then as composed.

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
    stored_model = read_model(path)
    content = stored_model.checkpoint
    if not content:
        log.info("%s: a file of another program; data and model are those of the command line", path)
        return tree, stored_model
    merged = with_stored(tree, content["config"], typed)
    for group, stored in content["config"].items():
        for line in differences(stored, {key: merged[group].get(key) for key in stored}, group):
            log.info("not as in the checkpoint: %s", line)
    return merged, stored_model


def matching(path: Path, identity: dict[str, Any], seed: int | None) -> StoredModel:
    """Read the checkpoint of a run that is to be continued.

    Raises ``ValueError`` where it belongs to another configuration than ``identity`` or, unless None, to another seed;
    a file of another program does not say what it belongs to.
    """
    stored = read_model(path)
    if not stored.checkpoint:
        return stored
    lines = differences(stored.checkpoint["config"], identity)
    different = [line for line in lines if not line.startswith(NO_MATTER)]
    if seed is not None and seed != stored.checkpoint["seed"]:
        different.append(f"seed: {stored.checkpoint['seed']} there, {seed} here")
    if different:
        raise ValueError(
            f"{path}: the checkpoint of a run with another configuration ({'; '.join(different[:5])}); "
            "choose another impl.checkpoint.name, or move the file away"
        )
    return stored


def keep_foreign(path: Path, stored: StoredModel) -> None:
    """Say what a file of another program lacks, and keep it: the run's own checkpoints take its place."""
    kept = path.with_name(f"{path.stem}.original{path.suffix}")
    if kept.exists() and not filecmp.cmp(path, kept, shallow=False):
        raise ValueError(f"{kept}: in the way of {path}, which would be kept there; move it away")
    shutil.copy2(path, kept)
    log.warning("%s: a file of another program, kept as %s; it lacks %s", path, kept, ", ".join(stored.notes))
