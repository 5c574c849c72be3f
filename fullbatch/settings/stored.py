"""What an evaluation takes from the configuration in a checkpoint: the keys below and no others.

A checkpoint may come from anybody. Its configuration says which numbers to compute: the model, the images and how they
are normalized, the loss. Paths, addresses, switches that replace files, and code that is imported are never taken from
it, only from the command line. A key that is not listed here has no effect.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fullbatch.settings.types import family

Tree = dict[str, Any]

IMAGES = ("channels", "classes", "pixels")
NORMALIZATION = ("normalize", "mean", "std")
DATA = (
    *("name", "size", "valid_size", "subset_seed", *IMAGES, *NORMALIZATION, "batch_size", "drop_last"),
    *("augmentations_train", "augmentations_val", "resize_on_read"),
)
FROZEN_COPIES = ("rounds", "seed", "first_round_clean", "augmentations_train", "augmentations_val")
"""Keys of ``data.db``; they are taken if the command line chooses ``data/db=LMDB``."""
HYP = (
    *("label_smoothing", "loss_modification", "sub_batch", "gradient_average", "batch_clip", "grad_clip_norm"),
    *("only_linear_layers_weight_decay", "label_noise", "evaluate_ema", "eval_ema_momentum", "test_time_flips"),
    *("recalibrate_batchnorm", "grad_reg.norm", "grad_reg.block_strength", "grad_reg.acc_strength", "grad_reg.eps"),
    "grad_reg.implementation",
)
CODE = ("data.target", "hyp.loss_target")
"""Keys that import code and change the numbers of an evaluation; see also ``CHOICES``."""


@dataclass(frozen=True)
class Choice:
    """A group of settings whose name selects its keys: the names and the keys that are taken."""

    names: tuple[str, ...]
    keys: tuple[str, ...]


CHOICES = {
    "model": Choice(
        ("resnet", "densenet", "vgg", "pyramidnet", "nfnet", "nfn", "linear", "mlp", "cnn", "torchvision", "timm"),
        (
            *("family", "name", "depth", "width", "stem", "convolution", "nonlin_fn", "normalization", "downsample"),
            *("initialization", "bn_size", "memory_efficient", "drop_rate", "head", "classical_weight_init", "alpha"),
            *("bottleneck", "variant", "stochdepth_rate", "se_ratio", "nonlin", "use_dropout", "pooling"),
        ),
    ),
    "hyp.optim": Choice(
        ("gd", "adam", "fista", "gd_agc", "gd_clip", "lbfgs", "torch"),
        (
            *("family", "name", "lr", "momentum", "weight_decay", "dampening", "nesterov", "line_search", "c1", "c2"),
            *("alpha_max", "args"),
            *("max_iter", "interval", "factor", "norm_type", "clipping", "eps", "betas", "amsgrad", "fista_mod"),
            *("projection", "radius", "restart", "history_size", "damping", "eta", "max_linesearches"),
        ),
    ),
    "hyp.optim_modification": Choice(
        ("none", "lars", "larc", "sam", "asam"), ("name", "trust_coefficient", "eps", "rho", "eta")
    ),
}

COMMON = ("weights",)
"""Keys of every choice of their group that are the command line's."""


def merge_stored(
    tree: Tree,
    stored: Mapping[str, Any],
    overrides: Iterable[str],
    defaults: Callable[[str], Tree] = lambda name: {},
    *,
    training: bool = True,
) -> Tree:
    """Return the composed configuration with what the lists above take from that of a checkpoint.

    The command line wins: a key that it names, or whose group it names, keeps its value. How images are normalized
    belongs to the model, so it is the checkpoint's even for other data, unless the command line names its keys.

    Args:
        tree: the composed configuration.
        stored: the configuration in the checkpoint.
        overrides: of the command line.
        defaults: name of a data source -> its default settings, for keys that are never taken, such as the path.
        training: whether the training set is needed.

    Raises:
        ValueError: the checkpoint needs code or a database that the command line does not name, or the command line
            names a key that the checkpoint's model does not have.
    """
    typed = {override.partition("=")[0].lstrip("+~").replace("/", ".") for override in overrides}
    merged = copy.deepcopy(tree)
    for key in CODE:
        if (target := lookup(stored, key)) is not None and not _is_typed(key, typed):
            raise ValueError(f"the checkpoint needs the code {_shown(target)}; to run it, add {key}={_shown(target)}")
    name = lookup(stored, "data.name")
    if "data" not in typed and name != merged["data"]["name"]:
        merged["data"] |= {k: copy.deepcopy(v) for k, v in defaults(str(name)).items() if f"data.{k}" not in typed}
    for key in listed_keys(stored):
        group, last = _parent(merged, key), key.rpartition(".")[2]
        value = copy.deepcopy(lookup(stored, key))
        if key in CHOICES:
            if not _is_typed(key, typed):
                group[last] = _chosen(key, group[last], value, typed)
        elif key not in typed and (not _is_typed(key, typed) or _belongs_to_model(key, group)):
            group[last] = value
    _merge_database(merged["data"], lookup(stored, "data.db"), typed, training)
    return merged


def lookup(tree: Any, key: str) -> Any:
    """Return the value of a dotted key; None where there is none."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def listed_keys(stored: Mapping[str, Any]) -> list[str]:
    """Return the listed keys that a configuration has; a group of ``CHOICES`` counts as one key."""
    keys = (*(f"data.{key}" for key in DATA), *(f"hyp.{key}" for key in HYP), *CHOICES)
    return [key for key in keys if key.rpartition(".")[2] in (_parent(stored, key) or {})]


def _parent(tree: Mapping[str, Any], key: str) -> Any:
    """Return the group that contains a key; None where there is none."""
    group = lookup(tree, key.rpartition(".")[0]) if "." in key else tree
    return group if isinstance(group, dict) else None


def _is_typed(key: str, typed: set[str]) -> bool:
    """Return whether the command line names the key or a group that contains it."""
    return any(key == other or key.startswith(f"{other}.") for other in typed)


def _belongs_to_model(key: str, data: Tree) -> bool:
    """Return whether a key of ``data`` is the model's also with other data: normalization, and shapes left blank."""
    group, _, last = key.partition(".")
    return group == "data" and (last in NORMALIZATION or (last in IMAGES and data.get(last) is None))


def _shown(value: Any) -> str:
    """Return text from a file for a message: as it is if it is plain, else quoted with escapes."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.:/~-]+", value) else repr(value)[:200]


def _merge_database(data: Tree, stored: Any, typed: set[str], training: bool) -> None:
    """Take how the frozen copies were made, if the command line chooses a database; nothing in a file can choose it."""
    frozen = isinstance(stored, dict) and family(stored) == "lmdb"
    if family(data["db"]) == "lmdb":
        taken = {key: stored[key] for key in FROZEN_COPIES if frozen and key in stored}
        taken |= {key: data.get(key) for key in ("pixels", "mean")}  # which refer to these in the configuration
        data["db"] |= {key: copy.deepcopy(value) for key, value in taken.items() if f"data.db.{key}" not in typed}
    elif frozen and (training or stored.get("augmentations_val")) and not typed & {"data", "data.db"}:
        raise ValueError(
            "the images of the checkpoint are frozen copies in a database; add data/db=LMDB and its data.db.path to "
            "use it (it is built where it is missing), or data/db=none for the images themselves"
        )


def _chosen(group: str, composed: Tree, stored: Any, typed: set[str]) -> Tree:
    """Return the listed keys of a stored group, changed by the keys that the command line names."""
    kind, choice, option = family(stored), CHOICES[group], group.replace(".", "/")
    if not isinstance(stored, dict) or kind not in choice.names:
        target = stored.get("target") if isinstance(stored, dict) else None
        if target is None:
            raise ValueError(f"{option}={_shown(kind)}: unknown; known: {', '.join(choice.names)}")
        arguments = f"{option}={_shown(kind)} {group}.target={_shown(target)}"
        raise ValueError(f"the checkpoint's {group} is {_shown(target)}; to run this code, add {arguments}")
    taken = {key: stored[key] for key in choice.keys if key in stored}
    taken |= {key: composed[key] for key in COMMON if key in composed}
    if family(composed) == kind:
        taken = {**composed, **taken}  # with keys that are newer than the checkpoint
    for key in (key.removeprefix(f"{group}.") for key in typed if key.startswith(f"{group}.")):
        if key not in taken:
            raise ValueError(f"{group}.{key}: no such key of the checkpoint's {group}, which is {_shown(kind)}")
        taken[key] = composed[key]
    return taken
