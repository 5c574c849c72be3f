"""Checkpoints: saved atomically, loaded without executing code, and continued from."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fullbatch.models.model_file import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_VERSION,
    StoredModel,
    check_checkpoint,
    read_pickle,
)
from fullbatch.models.weights import load_weights
from fullbatch.runtime.files import previous_paths, write_atomically
from fullbatch.training.state import TrainState


def save_checkpoint(
    path: Path,
    state: dict[str, Any],
    *,
    config: dict[str, Any],
    seed: int,
    command: Sequence[str] = (),
    keep: int = 0,
) -> None:
    """Save a ``TrainState.state_dict()`` with the configuration, the seed and the command line of its run.

    ``keep`` earlier checkpoints stay beside it, see ``previous_paths``.
    """
    content = {"format": CHECKPOINT_FORMAT, "version": CHECKPOINT_VERSION, "config": config, "seed": seed}
    content |= {"state": state, "command": list(command)}
    buffer = io.BytesIO()  # so that a full disk raises an OSError of the file system, not an error of torch
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer(), keep=keep)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the arguments of ``save_checkpoint`` as a dictionary, tensors on the CPU.

    Raises:
        ValueError: The file is damaged, truncated or of another program.
    """
    content = read_pickle(path)
    check_checkpoint(path, content)
    checkpoint: dict[str, Any] = content
    return checkpoint


def checkpoint_path(name: str) -> Path:
    """Return the path of the checkpoint ``impl.checkpoint.name``."""
    return Path("checkpoints") / (name if name.endswith((".pth", ".pt")) else f"{name}.pth")


def find_checkpoint(path: Path) -> Path | None:
    """Return ``path``, or the previous checkpoint if a crash left only that, or None."""
    return next((candidate for candidate in (path, *previous_paths(path, 1)) if candidate.exists()), None)


def resume_from(state: TrainState, stored: StoredModel) -> None:
    """Load the state of a run from a checkpoint, or from the model, optimizer and step that another program saved.

    The latter's rows hold the number of the step only.

    Raises:
        ValueError: The file holds no step, or another model or optimizer.
    """
    if stored.checkpoint:
        state.load_state_dict(stored.checkpoint["state"])
        return
    if stored.step is None:
        raise ValueError("a file of another program that holds only weights; runs continue from checkpoints")
    load_weights(state.model, stored.weights)
    if state.ema is not None:
        load_weights(state.ema.model, stored.weights)
    if stored.optimizer is not None:
        _load_moments(state.optimizer, stored.optimizer)
    state.rows = [{"step": step} for step in range(1, stored.step + 1)]


def _load_moments(optimizer: Optimizer, stored: dict[str, Any]) -> None:
    """Load momentum buffers and moments; learning rate, weight decay and so on remain those of ``optimizer``."""
    own_groups, stored_groups = optimizer.state_dict()["param_groups"], list(stored.get("param_groups", ()))
    for key in ("momentum", "betas", "history_size"):
        if (key in own_groups[0]) != (bool(stored_groups) and key in stored_groups[0]):
            raise ValueError(f"the optimizer state is of another optimizer (only one of the two has '{key}')")
    sizes, stored_sizes = ([len(group["params"]) for group in groups] for groups in (own_groups, stored_groups))
    if sizes != stored_sizes:
        raise ValueError(f"the optimizer state has groups of {stored_sizes} parameters, the optimizer here {sizes}")
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    for index, values in stored.get("state", {}).items():
        for name, value in values.items() if index in parameters else ():
            if isinstance(value, Tensor) and value.ndim > 0 and value.shape != parameters[index].shape:
                shapes = f"{list(value.shape)} there, {list(parameters[index].shape)} here"
                raise ValueError(f"the optimizer state is of another model ({name} of parameter {index}: {shapes})")
    optimizer.load_state_dict({"state": stored.get("state", {}), "param_groups": own_groups})
