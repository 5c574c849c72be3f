"""One reader for every file that holds a trained model, and continuing a run from one of another program.

Read are

- the paper's files, lists of five: [optimizer state, model state, scheduler state, scaler state, step];
- checkpoints of this program;
- state dicts, name -> tensor, of any model here, in the formats of ``torch.save`` and of safetensors.

A prefix ``module.`` or ``_orig_mod.`` of all names, left by a parallel or a compiled model, is taken off.

Nothing in a file is ever called: ``torch.load(weights_only=True)`` reads tensors and plain containers and refuses all
else, with one exception. Files of the paper may have configuration nodes of OmegaConf inside their optimizer state, and
whole schedulers inside their scheduler state. Those classes, listed below, are read as inert placeholders that ignore
what they are given; an optimizer state with a placeholder in it is left out, the scheduler state is not used anyway.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.serialization import safe_globals

from fullbatch.models.weights import load_weights
from fullbatch.training.checkpoint import FORMAT, check_checkpoint, read_pickle
from fullbatch.training.state import TrainState

_PREFIXES = ("module.", "_orig_mod.")
_OF_OMEGACONF = (
    *(f"omegaconf.{name}" for name in ("base.Metadata", "base.ContainerMetadata")),
    *(f"omegaconf.{name}" for name in ("listconfig.ListConfig", "dictconfig.DictConfig")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Integer", "Float", "String", "Boolean", "Bytes", "Enum")),
    "typing.Any",
    *(f"builtins.{kind}" for kind in ("int", "float", "str", "bool", "bytes", "list", "dict", "tuple")),
)


class _Inert:
    """Stands for an object that is not wanted: takes anything, keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


@dataclass(frozen=True)
class StoredModel:
    """What a file holds of a trained model."""

    weights: dict[str, Tensor]
    """The state dict; of a run with ``evaluate_ema`` the average's, which is what was validated."""
    optimizer: dict[str, Any] | None = None
    """The optimizer's state dict."""
    step: int | None = None
    """The number of steps taken."""
    checkpoint: dict[str, Any] = field(default_factory=dict)
    """All of a checkpoint of this program, empty for other files."""
    notes: tuple[str, ...] = ()
    """What the file lacks."""


def read_model(path: str | Path) -> StoredModel:
    """Read a trained model from any of the files above, tensors on the CPU.

    Raises ``ValueError`` for a file that is damaged, truncated, foreign, or holds code; it is left untouched.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return StoredModel(_state_dict(path, _read_safetensors(path)))
    try:
        content = read_pickle(path)
    except ValueError:
        with safe_globals(_placeholders()):
            content = read_pickle(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        check_checkpoint(path, content)
        state = content["state"]
        weights = _state_dict(path, state["ema"] or state["model"])
        return StoredModel(weights, state["optimizer"], len(state["rows"]), content)
    if isinstance(content, list):
        return _from_list(path, content)
    return StoredModel(_state_dict(path, content))


def _placeholders() -> list[Any]:
    """Return what to read in the place of the classes that may stand in a file without being wanted."""
    known = [*vars(torch.optim).values(), *vars(torch.optim.lr_scheduler).values()]
    classes = [kind for kind in known if isinstance(kind, type) and kind.__module__.startswith("torch.optim")]
    names = {*_OF_OMEGACONF, *(f"{kind.__module__}.{kind.__qualname__}" for kind in classes)}
    inert = [(type("_Placeholder", (_Inert,), {}), name) for name in sorted(names)]
    return [*inert, (lambda *_: {}, "collections.defaultdict")]  # is filled with items, which only a dictionary may be


def _from_list(path: Path, content: list[Any]) -> StoredModel:
    if len(content) != 5 or not isinstance(content[4], int) or content[4] < 0:
        described = "[optimizer state, model state, scheduler state, scaler state, step]"
        raise ValueError(f"{path}: a list of {len(content)} that is not {described}; left untouched")
    optimizer, weights, _, _, step = content
    notes = ["the table of the steps so far", "the seed", "the configuration", "an average of the weights"]
    if not isinstance(optimizer, dict) or _has_placeholder(optimizer):
        optimizer, notes = None, ["a readable optimizer state (momentum starts at zero)", *notes]
    return StoredModel(_state_dict(path, weights), optimizer, step, notes=tuple(notes))


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: holds no model: neither a state dict, nor a list of five, nor a checkpoint")
    weights = dict(content)
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in weights)), None):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _has_placeholder(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_placeholder(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return any(map(_has_placeholder, value))
    return isinstance(value, _Inert)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load  # noqa: PLC0415 (an extra)
    except ImportError:
        raise ValueError(f"{path}: needs safetensors: pip install 'fullbatch[safetensors]'") from None
    content = path.read_bytes()
    try:
        tensors: dict[str, Tensor] = load(content)
    except Exception as error:  # SafetensorError and what its parser lets through
        raise ValueError(f"{path}: damaged or truncated safetensors ({error}); left untouched") from error
    return tensors


def resume_from(state: TrainState, stored: StoredModel) -> None:
    """Continue from a checkpoint, or from model, optimizer and step of another program.

    Of the latter's steps the rows hold no more than their number. Raises ``ValueError`` for a file without a step, or
    whose model or optimizer is another.
    """
    if stored.checkpoint:
        state.load_state_dict(stored.checkpoint["state"])
        return
    if stored.step is None:
        raise ValueError("a file of another program that holds weights alone; a run continues from checkpoints")
    load_weights(state.model, stored.weights)
    if state.ema is not None:
        load_weights(state.ema.model, stored.weights)
    if stored.optimizer is not None:
        _load_moments(state.optimizer, stored.optimizer)
    state.rows = [{"step": step} for step in range(1, stored.step + 1)]


def _load_moments(optimizer: Optimizer, stored: dict[str, Any]) -> None:
    """Load momentum and the like; learning rates, weight decay and so on stay those of this run."""
    ours = optimizer.state_dict()
    theirs = list(stored.get("param_groups", ()))
    for key in ("momentum", "betas", "history_size"):
        if (key in ours["param_groups"][0]) != (bool(theirs) and key in theirs[0]):
            raise ValueError(f"the optimizer state is that of another optimizer ('{key}' is in one of the two only)")
    sizes = [[len(group["params"]) for group in groups] for groups in (ours["param_groups"], theirs)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the optimizer state is of groups of {sizes[1]} parameters, here they are {sizes[0]}")
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    for index, values in stored.get("state", {}).items():
        for name, value in values.items() if index in parameters else ():
            if isinstance(value, Tensor) and value.ndim > 0 and value.shape != parameters[index].shape:
                found = f"{list(value.shape)} there, {list(parameters[index].shape)} here"
                raise ValueError(f"the optimizer state is that of another model ({name} of parameter {index}: {found})")
    optimizer.load_state_dict({"state": stored.get("state", {}), "param_groups": ours["param_groups"]})
