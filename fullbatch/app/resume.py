"""Checkpoints from which runs continue."""

import filecmp
import logging
import shutil
from pathlib import Path

from fullbatch.app.identity import RunIdentity
from fullbatch.build.data import about
from fullbatch.models.model_file import StoredModel
from fullbatch.runtime.files import companion
from fullbatch.training.checkpoint import checkpoint_path, read_newest

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
            "choose another impl.checkpoint.name, or move the file away; impl.checkpoint.fork_from continues from it "
            "with this configuration"
        )
    return newest


def read_parent(name: str) -> tuple[Path, StoredModel]:
    """Read the checkpoint of another run, by its name or path, for a run that is forked from it."""
    path = checkpoint_path(name)
    with about(f"impl.checkpoint.fork_from={name}"):
        newest = read_newest(path)
        if newest is None:
            raise ValueError(f"there is no file {path}")
        if newest[1].step is None:
            raise ValueError("the file holds only weights; model.weights=FILE starts from weights alone")
    return newest


def keep_foreign(path: Path, stored: StoredModel) -> None:
    """Copy a file of another program, which the run's own checkpoints will replace, and log what it lacks."""
    kept = companion(path, "original")
    if kept.exists() and not filecmp.cmp(path, kept, shallow=False):
        raise ValueError(f"{kept}: in the way of {path}, which would be kept there; move it away")
    shutil.copy2(path, kept)
    log.warning("%s: a file of another program, kept as %s; it lacks %s", path, kept, ", ".join(stored.missing))
