"""The configuration of a command line, composed in process as the script does it."""

from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from fullbatch.app.hydra_cli import normalized
from fullbatch.settings import Run
from fullbatch.settings.parse import changed, plain, settings_of

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "config"
GROUPS = ("data", "model", "hyp", "impl", "analysis", "viz")


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose("cfg", normalized(overrides, CONFIG), return_hydra_config=False)


@cache
def composed_tree(*overrides: str) -> dict[str, Any]:
    return plain(composed(*overrides))


def settings_for(*overrides: str) -> Run:
    """Return the settings of a command line.

    Hydra composes, which takes it long, once for all lines that choose the same groups, add and delete the same keys.
    """
    values = [
        o for o in overrides if o[0] not in "+~" and "/" not in o.partition("=")[0] and o.split("=")[0] not in GROUPS
    ]
    parsed = OverridesParser.create().parse_overrides(values)
    changes = {o.key_or_group: None if o.value() == "" else o.value() for o in parsed}
    return settings_of(changed(composed_tree(*(o for o in overrides if o not in values)), changes))
