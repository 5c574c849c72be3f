"""The entries of a stored training state: their types, and whether they belong to the model and optimizer of a run.

Checkpoints are protected by checksums; entries that do not fit come from files that another program has changed.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired

import torch
from pydantic import AfterValidator, ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, with_config
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import TypedDict

from fullbatch.optim.eager import EagerOptimizer

STRICT = ConfigDict(strict=True)
EXACT = ConfigDict(strict=True, extra="forbid")
TENSOR = InstanceOf[Tensor]
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def _in_order(rows: list[dict[str, float | int]]) -> list[dict[str, float | int]]:
    for number, row in enumerate(rows, start=1):
        if row.get("step") != number:
            raise ValueError(f"should have the steps 1, 2, 3, ...; row {number} has step {row.get('step')}")
    return rows


@with_config(EXACT)
class _Segment(TypedDict):
    start: Count
    stop: Count
    position: Count
    buffers: list[TENSOR]


@with_config(EXACT)
class _Part(TypedDict):
    segments: list[_Segment]
    sums: list[TENSOR]


@with_config(EXACT)
class _FinishedPass(TypedDict):
    sums: list[TENSOR]
    buffers: list[TENSOR]


@with_config(EXACT)
class _Progress(TypedDict):
    rate: float
    finished: list[_FinishedPass]
    parts: list[_Part]
    seconds: Annotated[Finite, Field(ge=0)]


@with_config(EXACT)
class _Cached(TypedDict):
    """An ``Evaluation`` and the norm of the parameters there."""

    loss: TENSOR
    accuracy: TENSOR
    num_samples: TENSOR
    gradient: list[TENSOR]
    squared_norms: TENSOR
    penalty: TENSOR
    num_clipped: TENSOR
    evaluations: int
    norm: TENSOR


@with_config(STRICT)
class _Shared(TypedDict):
    """Entries of the optimizer's state that belong to no parameter."""

    search: NotRequired[dict[str, Finite | list[Finite]]]
    acceleration: NotRequired[dict[str, Finite]]
    norms: NotRequired[TENSOR]


@with_config(STRICT)
class _Group(TypedDict):
    params: list[int]


@with_config(STRICT)
class _OptimizerState(TypedDict):
    state: dict[int | str, Any]
    param_groups: list[_Group]


@with_config(STRICT)
class _StoredState(TypedDict):
    model: dict[str, Any]
    optimizer: _OptimizerState
    ema: dict[str, Any] | None
    rows: Annotated[list[dict[str, float | int]], AfterValidator(_in_order)]
    step: NotRequired[Count]
    stopped: str | None
    rng: TENSOR
    inside: NotRequired[_Progress | None]
    cached: NotRequired[dict[str, Any] | None]
    memory: NotRequired[dict[str, Any]]


KNOWN = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Besides those of this package, optimizers whose groups are settings and whose entries are shaped like parameters."""
NOT_COMPARED = {"lr", "foreach", "fused", "capturable", "differentiable"}
"""Keys of parameter groups that the schedule sets or that change numbers by rounding at most."""


def check_types(content: Any, schema: Any = _StoredState, name: str = "state") -> None:
    """Raise ``ValueError`` that names the first entry of a wrong type, by default in a ``TrainState.state_dict``."""
    try:
        TypeAdapter(schema).validate_python(content)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        where = ascii(".".join([name, *map(str, detail["loc"])]))[1:-1]
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
        message = {"Field required": "is missing"}.get(message, message)
        raise ValueError(f"the entry {where} {message}") from None


def check_optimizer(optimizer: Optimizer, stored: Mapping[str, Any], *, same_settings: bool) -> None:
    """Raise ``ValueError`` unless ``stored`` is a state of this optimizer of this model, with finite values.

    With ``same_settings``, learning rate, weight decay and so on must be equal, too.
    """
    check_types(stored, _OptimizerState, "state.optimizer")
    groups, stored_groups = optimizer.state_dict()["param_groups"], stored["param_groups"]
    for key in ("momentum", "betas", "history_size"):
        if (key in groups[0]) != (bool(stored_groups) and key in stored_groups[0]):
            raise ValueError(f"the optimizer state is of another optimizer (only one of the two has '{key}')")
    sizes, stored_sizes = ([len(group["params"]) for group in g] for g in (groups, stored_groups))
    if sizes != stored_sizes:
        raise ValueError(f"the optimizer state has groups of {stored_sizes} parameters, the optimizer here {sizes}")
    settings, is_known = _settings_of(optimizer), _is_known(optimizer)
    for number, (group, other) in enumerate(zip(groups, stored_groups, strict=True) if same_settings else ()):
        expected = {**group, "initial_lr": group.get("initial_lr", group.get("lr"))}
        for key in sorted((expected.keys() & other.keys() & settings) - NOT_COMPARED):
            if isinstance(other[key], Tensor) or other[key] != expected[key]:
                name = f"state.optimizer.param_groups.{number}.{key}"
                raise ValueError(f"the entry {name} is {other[key]!r}, in the configuration it is {expected[key]!r}")
    check_types({k: v for k, v in stored["state"].items() if isinstance(k, str)}, _Shared, "state.optimizer.state")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in stored["state"].items():
        if isinstance(index, int) and is_known:
            _check_moments(index, values, parameters)
        else:
            check_numbers(f"state.optimizer.state.{index}", values)
    for group in groups if is_known else ():
        kinds = {_kinds(stored["state"].get(index)) for index in group["params"]}
        if len(kinds) > 1:
            raise ValueError("the entries of state.optimizer.state differ between parameters; some are missing")


def stored_groups(optimizer: Optimizer, stored: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups to continue with: the settings are the optimizer's; what else it keeps there is that stored."""
    settings = _settings_of(optimizer)
    return [
        group | {key: value for key, value in other.items() if key not in settings}
        for group, other in zip(optimizer.state_dict()["param_groups"], stored, strict=True)
    ]


def _is_known(optimizer: Optimizer) -> bool:
    base = getattr(optimizer, "base", optimizer)
    return isinstance(base, EagerOptimizer) or type(base) in KNOWN


def _settings_of(optimizer: Optimizer) -> set[str]:
    """Return the keys of the groups that are settings; other packages keep parts of the state there, too."""
    keys = {"initial_lr"}.union(*optimizer.param_groups)
    if _is_known(optimizer):
        return keys
    constructor = inspect.signature(type(getattr(optimizer, "base", optimizer)))
    return keys & {*constructor.parameters, "params", "lr", "initial_lr"}


def check_cached(cached: Mapping[str, Any] | None, parameters: Sequence[nn.Parameter]) -> None:
    """Raise ``ValueError`` unless ``cached`` is None or an evaluation with finite values, as ``TrainState.cached``."""
    if cached is None:
        return
    check_types(cached, _Cached, "state.cached")
    check_numbers("state.cached", cached)
    if [tensor.shape for tensor in cached["gradient"]] != [parameter.shape for parameter in parameters]:
        raise ValueError("the entry state.cached.gradient is not shaped like the parameters")


def check_numbers(name: str, value: Any) -> None:
    """Raise ``ValueError`` where a number in nested containers is not finite or not real; numbers may be tensors."""
    if isinstance(value, Mapping | list | tuple):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            check_numbers(f"{name}.{key}", part)
        return
    if isinstance(value, Tensor):
        if value.is_meta or value.layout is not torch.strided or value.is_complex() or value.is_quantized:
            raise ValueError(f"the entry {name} is a tensor of {value.dtype}; accepted: dense tensors of real numbers")
        finite = bool(value.isfinite().all())
    else:
        finite = not isinstance(value, float) or math.isfinite(value)
    if not finite:
        raise ValueError(f"the file holds non-finite values (the entry {name})")


def _check_moments(index: int, values: Any, parameters: Sequence[nn.Parameter]) -> None:
    name = f"state.optimizer.state.{index}"
    if not 0 <= index < len(parameters):
        raise ValueError(f"the entry {name} belongs to no parameter; the optimizer has {len(parameters)}")
    check_types(values, dict[str, Any], name)
    check_numbers(name, values)
    shape = parameters[index].shape
    for key, value in values.items():
        for tensor in value if isinstance(value, list) else [value]:
            if not isinstance(tensor, Tensor | int | float | None):
                raise ValueError(f"the entry {name}.{key} is of type {type(tensor).__name__}; accepted: numbers")
            if isinstance(tensor, Tensor) and tensor.ndim > 0 and tensor.shape != shape:
                shapes = f"{list(tensor.shape)} there, {list(shape)} here"
                raise ValueError(f"the optimizer state is of another model ({key} of parameter {index}: {shapes})")
            if isinstance(tensor, Tensor) and tensor.ndim > 0 and not tensor.is_floating_point():
                raise ValueError(f"the entry {name}.{key} is of {tensor.dtype}; accepted: floating-point numbers")


def _kinds(values: Mapping[str, Any] | None) -> frozenset[tuple[str, str, int]]:
    """Return what the entries of all parameters of a group have in common."""
    return frozenset(
        (name, type(value).__name__, len(value) if isinstance(value, list) else 0)
        for name, value in (values or {}).items()
    )
