"""Validation loss and accuracy of a checkpoint: ``python verify_model_checkpoint.py impl.checkpoint.name=mine``."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from fullbatch.app.hydra_cli import reported

CONFIG = Path(__file__).parent / "config"
statuses: list[int] = []


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="cfg")
def main(cfg: DictConfig) -> None:
    """Verify one checkpoint, or several in a sweep (``-m``)."""
    from fullbatch.app.verify import verify_job  # noqa: PLC0415 (imports torch)

    statuses.append(verify_job(cfg))


if __name__ == "__main__":
    sys.exit(reported(main, CONFIG) or max(statuses, default=0))
