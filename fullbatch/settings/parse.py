"""From the composed configuration to the settings, with one line for each mistake.

This is the only module outside ``app`` that uses OmegaConf. A *tree* is the configuration as nested plain dictionaries.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from yaml import YAMLError

from fullbatch.runtime.files import format_bytes
from fullbatch.runtime.nesting import BadConfigurationError, require_bounded
from fullbatch.settings import Hyp, Run
from fullbatch.settings.data import LMDB
from fullbatch.settings.keys import GROUPS, describe_unknown_key
from fullbatch.settings.optim import LBFGS, GradientDescent, Momentum
from fullbatch.settings.stored import lookup

UNIONS = (("model",), ("data", "db"), ("hyp", "optim"), ("hyp", "optim_modification"), ("impl", "setup"))
"""Groups whose name selects their dataclass."""

MAX_BYTES = 1 << 20
"""Largest size of a file with a configuration."""


def parse(cfg: DictConfig) -> Run:
    """Return the settings of a composed configuration; see ``parse_tree``."""
    return parse_tree(to_tree(cfg))


def parse_tree(tree: dict[str, Any]) -> Run:
    """Return the settings in a tree.

    Raises:
        ValueError: The tree contains mistakes; one line each names the key, its value and what is accepted.
    """
    for key in GROUPS:
        value = lookup(tree, key)
        if value is not None and not isinstance(value, dict):
            option = f"{key.replace('.', '/')}={value}"
            raise ValueError(f"{key}={value}: {key} is a group of settings, chosen with a slash: {option}")
    if lookup(tree, "impl.JIT") is not None:
        raise ValueError("impl.JIT: TorchScript is not supported (PyTorch has deprecated it); leave it blank")
    try:
        run: Run = TypeAdapter(Run).validate_python(tree)
    except ValidationError as error:
        raise ValueError("\n".join(_describe(detail) for detail in error.errors(include_url=False))) from None
    for contradiction in _contradictions(run):
        raise ValueError(contradiction)
    return run


def to_tree(cfg: DictConfig) -> dict[str, Any]:
    """Return the resolved configuration as a tree, with None for blanks."""
    try:
        tree = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from None
    without_blanks: dict[str, Any] = _blanks_to_none(tree)
    return without_blanks


def replace_keys(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the tree with new values for existing dotted keys."""
    copied = copy.deepcopy(dict(tree))
    for key, value in changes.items():
        *path, last = key.split(".")
        parent = lookup(copied, ".".join(path)) if path else copied
        assert last in parent, key
        parent[last] = value
    return copied


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Return the tree as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(tree)))


def read_settings(path: Path) -> dict[str, str]:
    """Read a file written by ``to_yaml``: dotted key -> value as text; ``ValueError`` if it is not such a file."""
    if path.stat().st_size > MAX_BYTES:
        raise BadConfigurationError(f"{path}: not the configuration of a run (larger than {format_bytes(MAX_BYTES)})")
    require_bounded_yaml(path)
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not the configuration of a run ({str(error).splitlines()[0]})") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: not the configuration of a run (it has no keys)")
    return {key: "" if value is None else str(value) for key, value in flatten(tree).items()}


def require_bounded_yaml(path: Path) -> None:
    """Raise ``BadConfigurationError`` for a YAML file that takes minutes to read, because its aliases are nested."""
    content = path.read_bytes()
    if b"&" in content and b"*" in content:
        with suppress(YAMLError, UnicodeDecodeError):  # which its reader reports
            require_bounded(yaml.compose(content.decode(), Loader=yaml.CSafeLoader), path)


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> value."""
    items: dict[str, Any] = {}
    for key, value in tree.items():
        items |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return items


def _blanks_to_none(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _blanks_to_none(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_blanks_to_none(value) for value in node]
    return None if isinstance(node, str) and not node.strip() else node


def _describe(detail: ErrorDetails) -> str:
    location = detail["loc"]
    is_tag = [location[:depth] in UNIONS and len(location) > depth + 1 for depth in range(len(location))]
    key = ".".join(str(part) for part, tag in zip(location, is_tag, strict=True) if not tag)
    message = detail["msg"][:1].lower() + detail["msg"][1:]
    if detail["type"] == "unexpected_keyword_argument":
        return describe_unknown_key(key)
    if detail["type"] in ("missing", "missing_argument"):
        return f"{key}: this key is missing"
    if detail["type"] == "union_tag_not_found":
        return f"{key}.name: should not be a blank"
    if detail["type"] == "union_tag_invalid":
        known = detail.get("ctx", {}).get("expected_tags", "")
        selector = "name" if lookup(detail["input"], "family") is None else "family"
        return f"{key}.{selector}={lookup(detail['input'], selector)}: unknown; known: {known}"
    given = "a blank" if detail["input"] is None else repr(detail["input"])
    return f"{key}: {message.removeprefix('value error, ')} (got {given})"


def _contradictions(run: Run) -> Iterator[str]:
    hyp, impl = run.hyp, run.impl
    stochastic = hyp.train_stochastic or hyp.train_switch_stochastic is not None
    only_stochastic = "only in stochastic mode (hyp.train_stochastic=True)"
    rules = {
        f"hyp.sample_with_replacement=True: {only_stochastic}": hyp.sample_with_replacement and not stochastic,
        f"hyp.blocks_per_update={hyp.blocks_per_update}: {only_stochastic}": (
            hyp.blocks_per_update != 1 and not stochastic
        ),
        "hyp.optim.nesterov=True: needs hyp.optim.dampening=0": (
            isinstance(hyp.optim, Momentum) and hyp.optim.nesterov and hyp.optim.dampening != 0
        ),
        f"impl.mixed_precision={impl.mixed_precision}: needs impl.dtype=float": (
            impl.mixed_precision in (True, "float16") and impl.dtype in ("double", "float64")
        ),
        f"impl.grad_scaling={impl.grad_scaling}: needs impl.mixed_precision=float16": (
            impl.grad_scaling is not False and impl.mixed_precision != "float16"
        ),
        "hyp.train_semi_stochastic=True: steps use the rounds of a database in turn, so it needs data/db=LMDB": (
            hyp.train_semi_stochastic and not isinstance(run.data.db, LMDB)
        ),
        "data.mean and data.std: give both or leave both blank": (run.data.mean is None) != (run.data.std is None),
    }
    yield from (rule for rule, broken in rules.items() if broken)
    yield from _contradictions_of_line_search(hyp)


def _contradictions_of_line_search(hyp: Hyp) -> Iterator[str]:
    optimizer, wrapper = hyp.optim, hyp.optim_modification.name.upper()
    if not isinstance(optimizer, GradientDescent | LBFGS) or optimizer.line_search is None:
        return
    search = f"hyp/optim={optimizer.name} hyp.optim.line_search={optimizer.line_search}"
    if hyp.grad_noise.additive or hyp.grad_noise.multiplicative:
        yield f"hyp.grad_noise: not with {search}, which compares losses that the noise changes at random"
    if optimizer.line_search == "restarting":
        return
    conflict = f"not with {search}, which searches along the gradient of full_loss"
    rules = {
        f"hyp/optim_modification={wrapper}: {conflict}; {wrapper} uses another one": wrapper.endswith("SAM"),
        f"hyp/optim_modification={wrapper}: not with hyp/optim=lbfgs, whose curvature pairs need unscaled gradients": (
            wrapper in ("LARS", "LARC") and isinstance(optimizer, LBFGS)
        ),
        f"hyp.norm_bias: {conflict}, which has no bias": hyp.norm_bias.strength != 0,
        f"hyp.batch_clip: {conflict}, which is not clipped": hyp.batch_clip is not None,
        f"hyp.gradient_average=moving: {conflict}; the moving average is not one": hyp.gradient_average == "moving",
    }
    yield from (rule for rule, broken in rules.items() if broken)
