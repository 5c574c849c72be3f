"""From the composed configuration to frozen settings, with one clear line for each mistake.

The only module that knows omegaconf.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from yaml import YAMLError

from fullbatch.settings import Hyp, Run
from fullbatch.settings.data import LMDB
from fullbatch.settings.optim import LBFGS, GradientDescent, Momentum

GROUPS = (
    *("data.db", "hyp.optim", "hyp.optim_modification", "impl.setup"),
    *("data", "model", "hyp", "impl", "analysis", "viz"),
)

UNIONS = (("model",), ("data", "db"), ("hyp", "optim"), ("hyp", "optim_modification"), ("impl", "setup"))
"""Groups whose name selects their dataclass."""


def parse(cfg: DictConfig) -> Run:
    """Turn blanks into None and build the settings; see ``settings_of``."""
    return settings_of(plain(cfg))


def settings_of(tree: dict[str, Any]) -> Run:
    """Build the settings from what ``plain`` returned.

    Raises ``ValueError`` that names every wrong key, what was wrong and what would be accepted.
    """
    _refuse_values_for_groups(tree)
    _refuse_torchscript(tree)
    try:
        run: Run = TypeAdapter(Run).validate_python(tree)
    except ValidationError as error:
        raise ValueError("\n".join(_describe(detail) for detail in error.errors(include_url=False))) from None
    for problem in _contradictions(run):
        raise ValueError(problem)
    return run


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain dictionaries, blanks as None."""
    try:
        tree = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from None
    blanked: dict[str, Any] = _blanks_to_none(tree)
    return blanked


def with_stored(tree: dict[str, Any], stored: Mapping[str, Any], typed: Iterable[str]) -> dict[str, Any]:
    """Return the configuration of a checkpoint in the place of the composed one, but for what was typed.

    Args:
        tree: the composed configuration.
        stored: the groups that the checkpoint keeps.
        typed: the overrides of the command line; a key or a group named there has its value from ``tree``.
    """
    kept = copy.deepcopy(dict(stored))  # what is typed goes into the copy
    merged = {**tree, **{group: {**tree[group], **content} for group, content in kept.items()}}
    for override in typed:
        *path, last = override.partition("=")[0].lstrip("+~").replace("/", ".").split(".")
        above, value = _lookup(merged, ".".join(path)) if path else merged, _lookup(tree, ".".join([*path, last]))
        if isinstance(above, dict) and value is not None:
            above[last] = value
    return merged


def changed(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the configuration with other values for some dotted keys, which must be there."""
    copied = copy.deepcopy(dict(tree))
    for key, value in changes.items():
        *path, last = key.split(".")
        above = _lookup(copied, ".".join(path)) if path else copied
        assert last in above, key
        above[last] = value
    return copied


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Return the resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(tree)))


def read_settings(path: Path) -> dict[str, str]:
    """Read what ``to_yaml`` has written: dotted key -> value as text; ``ValueError`` for what is no such file."""
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not the configuration of a run ({str(error).splitlines()[0]})") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: not the configuration of a run (it has no keys)")
    return {key: "" if value is None else str(value) for key, value in flat(tree).items()}


def flat(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _blanks_to_none(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _blanks_to_none(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_blanks_to_none(value) for value in node]
    return None if isinstance(node, str) and not node.strip() else node


def _lookup(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _refuse_values_for_groups(tree: dict[str, Any]) -> None:
    for key in GROUPS:
        value = _lookup(tree, key)
        if value is not None and not isinstance(value, dict):
            slashed = key.replace(".", "/")
            raise ValueError(f"{key}={value}: {key} is a group of settings, chosen with a slash: {slashed}={value}")


def _refuse_torchscript(tree: dict[str, Any]) -> None:
    if _lookup(tree, "impl.JIT") is not None:
        raise ValueError("impl.JIT: TorchScript is refused (PyTorch has deprecated it); accepted: a blank")


def _describe(detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in _without_union_tags(detail["loc"]))
    message = detail["msg"][:1].lower() + detail["msg"][1:]
    if detail["type"] == "unexpected_keyword_argument":
        return f"{key}: there is no such key"
    if detail["type"] in ("missing", "missing_argument"):
        return f"{key}: this key is missing"
    if detail["type"] == "union_tag_not_found":
        return f"{key}.name: should not be a blank"
    if detail["type"] == "union_tag_invalid":
        known = detail.get("ctx", {}).get("expected_tags", "")
        decisive = "name" if _lookup(detail["input"], "family") is None else "family"
        return f"{key}.{decisive}={_lookup(detail['input'], decisive)}: unknown; known: {known}"
    given = "a blank" if detail["input"] is None else repr(detail["input"])
    return f"{key}: {message.removeprefix('value error, ')} (got {given})"


def _without_union_tags(location: tuple[int | str, ...]) -> Iterator[int | str]:
    for depth, part in enumerate(location):
        if not (location[:depth] in UNIONS and len(location) > depth + 1):
            yield part


def _contradictions(run: Run) -> Iterator[str]:
    hyp = run.hyp
    ever_stochastic = hyp.train_stochastic or hyp.train_switch_stochastic is not None
    rules: dict[str, Callable[[], bool]] = {
        "hyp.sample_with_replacement=True: only in stochastic mode (hyp.train_stochastic=True)": lambda: (
            hyp.sample_with_replacement and not ever_stochastic
        ),
        f"hyp.blocks_per_update={hyp.blocks_per_update}: only in stochastic mode (hyp.train_stochastic=True)": lambda: (
            hyp.blocks_per_update != 1 and not ever_stochastic
        ),
        "hyp.optim.nesterov=True: needs hyp.optim.dampening=0": lambda: (
            isinstance(hyp.optim, Momentum) and hyp.optim.nesterov and hyp.optim.dampening != 0
        ),
        f"impl.mixed_precision={run.impl.mixed_precision}: needs impl.dtype=float": lambda: (
            run.impl.mixed_precision in (True, "float16") and run.impl.dtype in ("double", "float64")
        ),
        f"impl.grad_scaling={run.impl.grad_scaling}: needs impl.mixed_precision=float16": lambda: (
            run.impl.grad_scaling is not False and run.impl.mixed_precision != "float16"
        ),
        "hyp.train_semi_stochastic=True: goes through the rounds of a database, so it needs data/db=LMDB": lambda: (
            hyp.train_semi_stochastic and not isinstance(run.data.db, LMDB)
        ),
        "data.mean and data.std: give both or leave both blank": lambda: (
            (run.data.mean is None) != (run.data.std is None)
        ),
    }
    yield from (problem for problem, applies in rules.items() if applies())
    yield from _contradictions_of_searches(hyp)


def _contradictions_of_searches(hyp: Hyp) -> Iterator[str]:
    optimizer, wrapper = hyp.optim, hyp.optim_modification.name.upper()
    if not isinstance(optimizer, GradientDescent | LBFGS) or optimizer.line_search is None:
        return
    search = f"hyp/optim={optimizer.name} hyp.optim.line_search={optimizer.line_search}"
    noisy = any((hyp.grad_noise.additive, hyp.grad_noise.multiplicative))
    if noisy:
        yield f"hyp.grad_noise: not with {search}, which compares losses that the noise moves at random"
    if optimizer.line_search == "restarting":
        return
    unlike = f"not with {search}, which searches along the gradient of full_loss"
    reasons = {
        f"hyp/optim_modification={wrapper}: {unlike}; {wrapper} takes another one": wrapper.endswith("SAM"),
        f"hyp/optim_modification={wrapper}: not with hyp/optim=lbfgs, whose curvature pairs need unscaled gradients": (
            wrapper in ("LARS", "LARC") and isinstance(optimizer, LBFGS)
        ),
        f"hyp.norm_bias: {unlike}, and that has no bias": hyp.norm_bias.strength != 0,
        f"hyp.batch_clip: {unlike}, unclipped": hyp.batch_clip is not None,
        f"hyp.gradient_average=moving: {unlike}; the moving average is none": hyp.gradient_average == "moving",
    }
    yield from (problem for problem, applies in reasons.items() if applies)
