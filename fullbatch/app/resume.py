"""Checkpoints by name, with the configuration that belongs to them."""

import filecmp
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fullbatch.app.identity import RunIdentity
from fullbatch.models.model_file import StoredModel
from fullbatch.runtime.files import companion
from fullbatch.runtime.manifests import differences
from fullbatch.settings.parse import merge_stored
from fullbatch.training.checkpoint import checkpoint_path, read_newest

log = logging.getLogger(__name__)


def restore(tree: dict[str, Any], name: str | None, overrides: Sequence[str]) -> tuple[dict[str, Any], StoredModel]:
    """Return the configuration of a checkpoint, changed by the command line, and the content of its file.

    For a file of another program, which has no configuration, the composed one is returned.

    Args:
        tree: the composed configuration.
        name: ``impl.checkpoint.name``.
        overrides: of the command line, which win; each that differs from the checkpoint's value is logged.

    Raises:
        ValueError: the name is blank, there is no such checkpoint, or it cannot be read.
    """
    if name is None:
        raise ValueError("impl.checkpoint.name: blank; give the name of the checkpoint to evaluate")
    newest = read_newest(checkpoint_path(name))
    if newest is None:
        raise ValueError(f"impl.checkpoint.name={name}: there is no file {checkpoint_path(name)}")
    path, stored_model = newest
    content = stored_model.checkpoint
    if not content:
        log.info("%s: a file of another program; data and model are those of the command line", path)
        return tree, stored_model
    merged = merge_stored(tree, content["config"], overrides)
    for group, stored in content["config"].items():
        for line in differences(stored, {key: merged[group].get(key) for key in stored}, group):
            log.info("not as in the checkpoint: %s", line)
    return merged, stored_model


def read_matching(path: Path, identity: RunIdentity) -> tuple[Path, StoredModel] | None:
    """Read the checkpoint of a run that is to be continued; see ``read_newest``.

    Raises ``ValueError`` where it belongs to a run of another identity; a file of another program has none.
    """
    newest = read_newest(path)
    if newest is None:
        return None
    path, stored = newest
    seed = stored.checkpoint.get("seed", 0)
    if not 0 <= seed < 2**63:
        raise ValueError(f"{path}: the entry seed is {seed}; accepted: numbers from 0 to 2^63 - 1")
    if stored.checkpoint and (lines := identity.mismatches(stored.checkpoint)):
        raise ValueError(
            f"{path}: the checkpoint of a run with another configuration ({'; '.join(lines[:5])}); "
            "choose another impl.checkpoint.name, or move the file away"
        )
    return newest


def keep_foreign(path: Path, stored: StoredModel) -> None:
    """Copy a file of another program, which the run's own checkpoints will replace, and log what it lacks."""
    kept = companion(path, "original")
    if kept.exists() and not filecmp.cmp(path, kept, shallow=False):
        raise ValueError(f"{kept}: in the way of {path}, which would be kept there; move it away")
    shutil.copy2(path, kept)
    log.warning("%s: a file of another program, kept as %s; it lacks %s", path, kept, ", ".join(stored.missing))
