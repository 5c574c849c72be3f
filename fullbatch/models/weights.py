"""State dicts: which are accepted, whether they are those of a model, and loading them."""

from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from fullbatch.models.inspection import shorten

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What ``DataParallel``, ``torch.compile``, FSDP and activation checkpointing insert into names."""
MAX_PREFIX = 8
"""Parts of a prefix that precedes the names in a model."""
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)


def load_weights(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict into ``model``; floating-point entries are cast to the type of those of the model.

    Names may differ by what wrappers of modules insert and by a prefix that all entries share.

    Raises:
        ValueError: Entries are not dense tensors, differ in name or shape, would lose more than precision in the type
            of the model, or are not finite; the message lists the first three.
    """
    if problem := naming_problem(state):
        raise ValueError(f"the weights are no state dict: {problem}")
    check_dense(state)
    state = _rename(state, model.state_dict())
    own, tensors = (
        {name: part for name, part in entries.items() if isinstance(part, Tensor)}
        for entries in (model.state_dict(), state)
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if shapes != expected:
        names = [name for name in {**expected, **shapes} if expected.get(name) != shapes.get(name)]
        listed = "; ".join(
            f"{shorten(name)}: {expected.get(name, 'absent')} here, {shapes.get(name, 'absent')} there"
            for name in names[:3]
        )
        raise ValueError(f"the weights are those of another model: {len(names)} entries differ ({listed})")
    names = [name for name, tensor in tensors.items() if not _is_castable(tensor, own[name])]
    if names:
        listed = "; ".join(f"{name}: {own[name].dtype} here, {tensors[name].dtype} there" for name in names[:3])
        raise ValueError(
            f"{len(names)} entries of the weights are of another type ({listed}); "
            "floating-point numbers are cast to floating-point numbers only, and integers to integers"
        )
    names = [name for name, tensor in tensors.items() if not tensor.to(own[name].dtype).isfinite().all()]
    if names:
        raise ValueError(f"{len(names)} entries of the weights are not finite ({', '.join(names[:3])})")
    model.load_state_dict(state)


def naming_problem(state: Any) -> str | None:
    """Return why an object is not a state dict, name -> tensor; the extra state of modules may be any object."""
    if not isinstance(state, Mapping) or not state:
        return "it is empty" if isinstance(state, Mapping) else f"it is of type {type(state).__name__}"
    for name, part in state.items():
        if not isinstance(name, str):
            return f"the name of the entry {shorten(name)} is of type {type(name).__name__}"
        if not isinstance(part, Tensor) and name.rpartition(".")[2] != "_extra_state":
            return f"the entry {shorten(name)} is of type {type(part).__name__}"
    return None


def check_dense(state: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where an entry is not a dense tensor with values of an ordinary type."""
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and (kind := _unusual_kind(tensor)):
            raise ValueError(f"the entry {shorten(name)} is {kind}; accepted: dense tensors of 16 to 64 bits")


def without_wrappers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the names of wrappers with which all names begin, and the counter of ``AveragedModel``."""
    if all(name == "n_averaged" or name.startswith("module.") for name in state):
        state = {name: part for name, part in state.items() if name != "n_averaged"}
    while prefix := next((f"{w}." for w in WRAPPERS if all(name.startswith(f"{w}.") for name in state)), None):
        state = {name.removeprefix(prefix): part for name, part in state.items()}
    return dict(state)


def _rename(state: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state dict with the names in ``own`` where only wrappers or a common prefix tell them apart."""
    if state.keys() == own.keys():
        return state
    ours, theirs = ({_unwrapped(name): name for name in names} for names in (own, state))
    if len(ours) < len(own) or len(theirs) < len(state):
        return state
    prefixes = Counter(
        name[: len(name) - len(rest)]
        for name in theirs
        for rest in accumulate(range(MAX_PREFIX), lambda rest, _: rest.partition(".")[2], initial=name)
        if rest in ours
    )
    best = max(prefixes, key=lambda prefix: (prefixes[prefix], -len(prefix)), default="")
    plain = {name.removeprefix(best): state[original] for name, original in theirs.items()}
    return {ours.get(name, name): part for name, part in plain.items()}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _unusual_kind(tensor: Tensor) -> str | None:
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return "a sparse tensor"
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        return f"a tensor of the class {type(tensor).__name__}"
    if tensor.is_quantized:
        return "a quantized tensor"
    if tensor.is_meta:
        return "a meta tensor, which has no values"
    return None if tensor.dtype in (*_DTYPES, *_INTEGERS) else f"of {tensor.dtype}"


def _is_castable(tensor: Tensor, own: Tensor) -> bool:
    """Return whether a cast to the type of ``own`` costs at most precision of floating-point numbers."""
    if tensor.dtype in _INTEGERS and own.dtype in _INTEGERS:
        return torch.equal(tensor.to(own.dtype).long(), tensor.long())
    return tensor.dtype == own.dtype or (tensor.is_floating_point() and own.is_floating_point())
