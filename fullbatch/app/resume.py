"""Checkpoints from which runs continue."""

import filecmp
import logging
import shutil
from pathlib import Path

from fullbatch.app.identity import RunIdentity
from fullbatch.models.model_file import StoredModel
from fullbatch.runtime.files import companion
from fullbatch.training.checkpoint import read_newest

log = logging.getLogger(__name__)


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
