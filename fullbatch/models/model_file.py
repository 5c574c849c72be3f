"""Reading files with trained models.

``read_model`` reads

- the lists of five that the paper's code saves: [optimizer state, model state, scheduler state, scaler state, step];
- checkpoints of this program;
- state dicts, name -> tensor, saved by ``torch.save`` or as safetensors.

A prefix ``module.`` or ``_orig_mod.`` that all names share, left by a parallel or a compiled model, is removed.

No code in a file is executed: ``torch.load(weights_only=True)`` accepts only tensors and plain containers, with one
exception. The paper's files may contain OmegaConf nodes in their optimizer state and learning rate schedulers in their
scheduler state. The classes listed below are read as empty placeholders. An optimizer state that contains a placeholder
is dropped; the scheduler state is never used.
"""

import io
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from fullbatch.models.packed_rows import unpack_rows
from fullbatch.runtime.archives import damaged, read_verified
from fullbatch.runtime.nesting import require_bounded

CHECKPOINT_FORMAT = "fullbatch checkpoint"
CHECKPOINT_VERSIONS = (1, 2)
"""Formats without and with packed rows; the first one is read by earlier versions of this package, too."""

_PREFIXES = ("module.", "_orig_mod.")
_OF_OMEGACONF = (
    *(f"omegaconf.{name}" for name in ("base.Metadata", "base.ContainerMetadata")),
    *(f"omegaconf.{name}" for name in ("listconfig.ListConfig", "dictconfig.DictConfig")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Integer", "Float", "String", "Boolean", "Bytes", "Enum")),
    "typing.Any",
    *(f"builtins.{kind}" for kind in ("int", "float", "str", "bool", "bytes", "list", "dict", "tuple")),
)


class _Placeholder:
    """An empty object that accepts and ignores any arguments and state."""

    def __new__(cls, *_: Any, **__: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


@dataclass(frozen=True)
class StoredModel:
    """The content of a file with a trained model."""

    weights: dict[str, Tensor]
    """State dict; with ``evaluate_ema`` that of the moving average, which is the model that was validated."""
    optimizer: dict[str, Any] | None = None
    """State dict of the optimizer."""
    step: int | None = None
    """Number of steps taken."""
    checkpoint: dict[str, Any] = field(default_factory=dict)
    """The whole checkpoint; empty for files of other programs."""
    missing: tuple[str, ...] = ()
    """Descriptions of what the file lacks."""


def read_model(path: str | Path) -> StoredModel:
    """Read a trained model from any of the files above, tensors on the CPU.

    Raises:
        ValueError: The file is damaged, truncated, contains code or no model.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return StoredModel(_state_dict(path, _read_safetensors(path)))
    try:
        content = read_pickle(path)
    except ValueError:
        with safe_globals(_placeholders()):
            content = read_pickle(path)
    if isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT:
        check_checkpoint(path, content)
        state = content["state"]
        weights = _state_dict(path, state["ema"] or state["model"])
        return StoredModel(weights, state["optimizer"], len(state["rows"]), content)
    if isinstance(content, list):
        return _from_list(path, content)
    return StoredModel(_state_dict(path, content))


def read_pickle(path: Path) -> Any:
    """Return the object that ``torch.save`` wrote, tensors on the CPU; no code in the file is executed.

    Raises:
        DamagedError: The file is damaged or truncated.
        ValueError: The file contains more than tensors and plain containers.
    """
    content = read_verified(path)  # an OSError here comes from the file system, one below from the content
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        reason = "contains more than tensors and plain containers"
        if content.startswith(b"PK") and isinstance(error, pickle.UnpicklingError):
            raise ValueError(
                f"{path}: not a checkpoint of this program ({reason}); the file is left untouched"
            ) from error
        raise damaged(path, f"or it {reason}") from error


def check_checkpoint(path: Path, content: Any) -> None:
    """Raise ``ValueError`` unless the content of a file is a checkpoint that this version can read; unpack its rows."""
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"{path}: a file of another program, not a checkpoint; the file is left untouched")
    if content["version"] not in CHECKPOINT_VERSIONS:
        readable = " and ".join(map(str, CHECKPOINT_VERSIONS))
        raise ValueError(f"{path}: checkpoint of format {content['version']}; this version reads formats {readable}")
    require_bounded(content.get("config"), path)
    try:
        content["state"] = unpack_rows(content["state"])
    except ValueError as error:
        raise damaged(path, str(error)) from error


def _placeholders() -> list[Any]:
    """Return (class, qualified name) pairs that read the unwanted classes as placeholders."""
    candidates = [*vars(torch.optim).values(), *vars(torch.optim.lr_scheduler).values()]
    classes = [kind for kind in candidates if isinstance(kind, type) and kind.__module__.startswith("torch.optim")]
    names = {*_OF_OMEGACONF, *(f"{kind.__module__}.{kind.__qualname__}" for kind in classes)}
    empty = [(type("_Empty", (_Placeholder,), {}), name) for name in sorted(names)]
    return [*empty, (lambda *_: {}, "collections.defaultdict")]  # items are set on it, which needs a dictionary


def _from_list(path: Path, content: list[Any]) -> StoredModel:
    if len(content) != 5 or not isinstance(content[4], int) or content[4] < 0:
        expected = "[optimizer state, model state, scheduler state, scaler state, step]"
        raise ValueError(f"{path}: a list of {len(content)} that is not {expected}; the file is left untouched")
    optimizer, weights, _, _, step = content
    missing = ["the table of the steps so far", "the seed", "the configuration", "an average of the weights"]
    if not isinstance(optimizer, dict) or _has_placeholder(optimizer):
        optimizer, missing = None, ["a readable optimizer state (momentum starts at zero)", *missing]
    return StoredModel(_state_dict(path, weights), optimizer, step, missing=tuple(missing))


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: contains no model: neither a state dict, nor a list of five, nor a checkpoint")
    weights = dict(content)
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in weights)), None):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _has_placeholder(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_placeholder(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return any(map(_has_placeholder, value))
    return isinstance(value, _Placeholder)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load  # noqa: PLC0415 (an extra)
    except ImportError:
        raise ValueError(f"{path}: needs safetensors: pip install 'fullbatch[safetensors]'") from None
    content = path.read_bytes()
    try:
        tensors: dict[str, Tensor] = load(content)
    except Exception as error:  # SafetensorError, and errors of its parser
        raise ValueError(f"{path}: damaged or truncated safetensors ({error}); the file is left untouched") from error
    return tensors
