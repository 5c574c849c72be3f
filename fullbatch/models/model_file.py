"""Reading files with trained models.

``read_model`` reads

- the lists of five that the paper's code saves: [optimizer state, model state, scheduler state, scaler state, step];
- checkpoints of this program;
- state dicts, name -> tensor, saved by ``torch.save`` or as safetensors, alone or inside dictionaries, such as
  ``{"epoch": 3, "model": {"state_dict": ...}}``.

Where a dictionary contains several state dicts, ``key`` selects one. Without it, a moving average is preferred to the
weights that it belongs to. Prefixes of all names that wrappers such as ``DistributedDataParallel`` leave are removed;
``load_weights`` removes whatever else precedes the names in a model.

No code in a file is executed, see ``fullbatch.models.pickles``. The paper's files may contain OmegaConf nodes in their
optimizer state and learning rate schedulers in their scheduler state. An optimizer state with such nodes is dropped.
The scheduler state is never used.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from fullbatch.models.inspection import StandIn, shorten, walk
from fullbatch.models.packed_rows import unpack_rows
from fullbatch.models.pickles import file_format, read_pickle
from fullbatch.models.weights import check_dense, naming_problem, without_wrappers
from fullbatch.runtime.archives import damaged
from fullbatch.runtime.nesting import require_bounded

log = logging.getLogger(__name__)

CHECKPOINT_FORMAT = "fullbatch checkpoint"
CHECKPOINT_VERSIONS = (1, 2)
"""Formats without and with packed rows; the first one is read by earlier versions of this package, too."""
MAX_STEP = 10**6
"""The largest step in a list of five."""

Kinds = dict[str, type | tuple[type, ...]]
_PARTS: Kinds = {"config": dict, "seed": int, "state": dict}
_STATE: Kinds = {"model": dict, "ema": (dict, type(None)), "optimizer": dict, "rows": list}
"""Entry of a checkpoint, and of the state in it -> type."""
_AVERAGE = re.compile(r"(^|[._])(ema|swa|avg|averaged?|shadow)([._]|$)", re.IGNORECASE)


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


def read_model(path: str | Path, key: str | None = None) -> StoredModel:
    """Read a trained model from any of the files above, tensors on the CPU.

    Args:
        path: the file.
        key: where the state dict is in nested dictionaries, keys joined by dots (``state_dict_ema``,
            ``model.state_dict``).

    Raises:
        ValueError: The file is damaged, truncated, contains code, no model or several, tensors that are not dense, or
            would take far more memory than its size.
    """
    path = Path(path)
    content = _read_safetensors(path) if file_format(path) == "safetensors" else read_pickle(path)
    if _is_checkpoint(content):
        check_checkpoint(path, content)
        state = content["state"]
        key = key or ("state.ema" if state["ema"] else "state.model")
        return StoredModel(_find_weights(path, content, key), state["optimizer"], len(state["rows"]), content)
    if isinstance(content, list):
        return _from_list(path, content)
    return StoredModel(_find_weights(path, content, key))


def check_checkpoint(path: Path, content: Any) -> None:
    """Raise ``ValueError`` unless the content of a file is a checkpoint that this version can read; unpack its rows."""
    if not _is_checkpoint(content):
        raise ValueError(f"{path}: a file of another program, not a checkpoint; the file is left untouched")
    version = content.get("version")
    if type(version) is not int or version not in CHECKPOINT_VERSIONS:
        readable = " and ".join(map(str, CHECKPOINT_VERSIONS))
        raise ValueError(f"{path}: checkpoint of format {shorten(version)}; this version reads formats {readable}")
    require_bounded(content.get("config"), path)
    try:
        _check_types("", content, _PARTS)
        _check_types("state.", content["state"], _STATE)
        content["state"] = unpack_rows(content["state"])
        for number, row in enumerate(content["state"]["rows"]):
            if not isinstance(row, dict) or not all(isinstance(value, int | float) for value in row.values()):
                raise ValueError(f"the entry state.rows.{number} is not a row, name -> number")
    except ValueError as error:
        raise damaged(path, str(error)) from error


def _check_types(where: str, entries: Mapping[str, Any], kinds: Kinds) -> None:
    """Raise ``ValueError`` that names the first entry that is missing or of another type."""
    for name, kind in kinds.items():
        part = entries.get(name)
        if name not in entries or not isinstance(part, kind) or isinstance(part, bool):
            problem = f"of type {type(part).__name__}" if name in entries else "missing"
            raise ValueError(f"the entry {where}{shorten(name)} is {problem}")


def _is_checkpoint(content: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(content, dict) and isinstance(form := content.get("format"), str) and form == CHECKPOINT_FORMAT


def _from_list(path: Path, content: list[Any]) -> StoredModel:
    expected = f"[optimizer state, model state, scheduler state, scaler state, step up to {MAX_STEP:,}]"
    if len(content) != 5 or type(content[4]) is not int or not 0 <= content[4] <= MAX_STEP:
        raise ValueError(f"{path}: a list of {len(content)} that is not {expected}; the file is left untouched")
    optimizer, weights, _, _, step = content
    missing = ["the table of the steps so far", "the seed", "the configuration", "an average of the weights"]
    if not isinstance(optimizer, dict) or any(isinstance(part, StandIn) for _, part in walk(optimizer)):
        optimizer, missing = None, ["a readable optimizer state (momentum starts at zero)", *missing]
    return StoredModel(_find_weights(path, weights), optimizer, step, missing=tuple(missing))


def _find_weights(path: Path, content: Any, key: str | None = None) -> dict[str, Any]:
    """Return the state dict ``key`` in nested dictionaries, or the only one, without the prefixes of wrappers."""
    found = dict(_state_dicts(content)) or dict(_state_dicts(content, need_parameters=False))
    if not found:
        problem = naming_problem(content)
        raise ValueError(
            f"{path}: contains no model: neither a state dict ({problem}), nor a list of five, nor a checkpoint"
        )
    names = ", ".join(shorten(name) for name in found)
    if key is not None and key not in found:
        raise ValueError(f"{path}: key={key!r}: there is no such state dict; there are: {names}")
    if key is None and len(found) > 1:
        key = _average_of(found)
        if key is None:
            raise ValueError(f"{path}: contains several state dicts: {names}; take one by read_model(path, key=...)")
        log.info("%s: took the moving average %s of %s; read_model(path, key=...) takes the other", path, key, names)
    weights = found[next(iter(found)) if key is None else key]
    try:
        check_dense(weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return without_wrappers(
        {name: Tensor.detach(part) if isinstance(part, Tensor) else part for name, part in weights.items()}
    )


def _state_dicts(content: Any, name: str = "", need_parameters: bool = True) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (keys joined by dots, state dict); dictionaries of tensors without parameters are often statistics."""
    if not isinstance(content, Mapping) or "param_groups" in content:  # the state of an optimizer
        return
    tensors = [part for part in content.values() if isinstance(part, Tensor)]
    parameters = [tensor for tensor in tensors if tensor.ndim and (tensor.is_floating_point() or tensor.is_complex())]
    if not naming_problem(content) and (parameters if need_parameters else tensors):
        yield name, content
        return
    for part_name, part in content.items():
        if isinstance(part_name, str):
            yield from _state_dicts(part, f"{name}.{part_name}" if name else part_name, need_parameters)


def _average_of(found: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return which of two state dicts is the moving average of the other."""
    averages = [name for name in found if _AVERAGE.search(name)]
    shapes = [
        sorted(tuple(part.shape) for part in state.values() if getattr(part, "ndim", 0)) for state in found.values()
    ]
    return averages[0] if len(found) == 2 and len(averages) == 1 and shapes[0] == shapes[1] else None


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
