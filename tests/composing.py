"""The configuration of a command line, composed in process as the script does it."""

from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from fullbatch.app.argv import normalized
from fullbatch.settings import Run
from fullbatch.settings.parse import parse_tree, replace_keys, to_tree

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "config"
GROUPS = ("data", "model", "hyp", "impl", "analysis", "viz")


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose("cfg", normalized(overrides, CONFIG), return_hydra_config=False)


@cache
def composed_tree(*overrides: str) -> dict[str, Any]:
    return to_tree(composed(*overrides))


def tree_for(*overrides: str) -> dict[str, Any]:
    """Return the plain configuration of a command line.

    Hydra composes, which takes it long, once for all lines that choose the same groups, add and delete the same keys.
    """
    keys = {line: line.partition("=")[0] for line in overrides}
    values = [line for line, key in keys.items() if key[0] not in "+~" and "/" not in key and key not in GROUPS]
    parsed = OverridesParser.create().parse_overrides(normalized(values, CONFIG))
    changes = {override.key_or_group: override.value() for override in parsed}
    base = composed_tree(*(line for line in overrides if line not in values))
    return replace_keys(base, {key: None if value == "" else value for key, value in changes.items()})


def settings_for(*overrides: str) -> Run:
    return parse_tree(tree_for(*overrides))
