"""Checkpoints: saved atomically, loaded without executing code, and continued from."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fullbatch.models.model_file import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_VERSIONS,
    StoredModel,
    check_checkpoint,
    read_model,
)
from fullbatch.models.packed_rows import KEY
from fullbatch.models.pickles import read_pickle
from fullbatch.models.weights import load_weights
from fullbatch.runtime.archives import DamagedError, write_archive
from fullbatch.runtime.files import companion, versions
from fullbatch.training.state import TrainState
from fullbatch.training.stored_state import check_optimizer

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""The folder of checkpoints that have names, in the launch folder."""


def save_checkpoint(
    path: Path,
    state: dict[str, Any],
    *,
    config: dict[str, Any],
    seed: int,
    images: Mapping[str, Any] | None = None,
    command: Sequence[str] = (),
    content: str | None = None,
    parent: Mapping[str, Any] | None = None,
    keep: int = 0,
) -> None:
    """Save a ``TrainState.state_dict()`` with the configuration, the seed and the command line of its run.

    Args:
        path: of the file; ``keep`` earlier checkpoints stay beside it, see ``previous_paths``.
        state: see above.
        config: the groups data, model and hyp of the configuration.
        seed: of the run.
        images: values that the configuration may leave blank: channels, classes, pixels, mean and std.
        command: the command line.
        content: identifies the data, as ``RunIdentity.content``.
        parent: path, step and digest of the checkpoint that the run was forked from.
        keep: see ``path``.
    """
    version = CHECKPOINT_VERSIONS[KEY in state]
    saved: dict[str, Any] = {"format": CHECKPOINT_FORMAT, "version": version, "config": config, "seed": seed}
    saved |= {"state": state, "command": list(command), "content": content, "images": dict(images or {})}
    saved |= {} if parent is None else {"parent": dict(parent)}
    write_archive(path, saved, keep=keep)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the arguments of ``save_checkpoint`` as a dictionary, tensors on the CPU.

    Raises:
        DamagedError: The file is damaged or truncated.
        ValueError: The file is of another program.
    """
    content = read_pickle(path)
    check_checkpoint(path, content)
    checkpoint: dict[str, Any] = content
    return checkpoint


def is_path(name: str) -> bool:
    """Return whether ``impl.checkpoint.name`` is a path: whether it contains a separator."""
    return "/" in name or os.sep in name


def checkpoint_path(name: str) -> Path:
    """Return the file that a name or a path of a checkpoint means.

    A name without a separator is a file in ``checkpoints/``, and a path is relative to the current folder. ``.pth`` is
    appended to what does not end with ``.pth`` or ``.pt``, except for the path of an existing file. Earlier versions
    put ``a/b`` below ``checkpoints/``: such a file is used where there is none at the path itself.
    """
    file = name if name.endswith((".pth", ".pt")) else f"{name}.pth"
    below = Path(CHECKPOINTS) / file
    if not is_path(name):
        return below
    given, path = Path(os.path.expanduser(name)), Path(os.path.expanduser(file))
    if given.is_file() or path.is_absolute():
        return given if given.is_file() else path
    return below if find_checkpoint(path) is None and find_checkpoint(below) is not None else path


def find_checkpoint(path: Path) -> Path | None:
    """Return ``path``, or the previous checkpoint if a crash left only that, or None."""
    return next(iter(versions(path)), None)


def read_newest(path: Path) -> tuple[Path, StoredModel] | None:
    """Read ``path`` or, if it is missing or damaged, the newest of the previous checkpoints that is not.

    Returns the path and the content, or None if there is none of these files; logs which files are damaged.

    Raises:
        DamagedError: All of them are damaged.
        ValueError: The file cannot be read for another reason, as ``read_model``.
    """
    first_error: DamagedError | None = None
    for version in versions(path):
        try:
            stored = read_model(version)
        except DamagedError as error:
            first_error = first_error or error
            continue
        if first_error is not None:
            log.warning("%s; continuing with %s", first_error, version)
        return version, stored
    if first_error is not None:
        raise first_error
    return None


def set_damaged_aside(path: Path, intact: Path) -> None:
    """Rename the damaged checkpoints that are newer than ``intact``, so that new ones do not replace what is intact."""
    for version in versions(path)[: versions(path).index(intact)]:
        version.replace(companion(version, "damaged"))


def resume_from(state: TrainState, stored: StoredModel, *, fork: bool = False) -> None:
    """Load the state of a run from a checkpoint, or from the model, optimizer and step that another program saved.

    The latter's rows hold the number of the step only. With ``fork``, the run may have other settings than the stored
    one; it starts from the beginning of the step that the stored one is in.

    Raises:
        ValueError: The file holds no step, or another model or optimizer.
    """
    if stored.checkpoint:
        state.load_state_dict(stored.checkpoint["state"], fork=fork)
        return
    if stored.step is None:
        raise ValueError(
            "a file of another program that holds only weights; runs continue from checkpoints, and start from weights "
            "alone with model.weights=FILE"
        )
    load_weights(state.model, stored.weights)
    if state.ema is not None:
        load_weights(state.ema.model, stored.weights)
    if stored.optimizer is not None:  # learning rate, weight decay and so on remain those of this run
        check_optimizer(state.optimizer, stored.optimizer, same_settings=False)
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": stored.optimizer["state"], "param_groups": groups})
    state.rows = [{"step": step} for step in range(1, stored.step + 1)]
