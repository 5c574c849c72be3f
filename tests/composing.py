"""The configuration of a command line, composed in process as the script does it."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from fullbatch.app.hydra_cli import normalized

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "config"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose("cfg", normalized(overrides, CONFIG), return_hydra_config=False)
