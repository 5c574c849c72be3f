"""The loss landscape around a checkpoint: ``python crunch_loss_landscape.py viz=2d impl.checkpoint.name=mine``."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from fullbatch.app.hydra_cli import reported

CONFIG = Path(__file__).parent / "config"
INTERRUPTED = 128
statuses: list[int] = []


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="cfg")
def main(cfg: DictConfig) -> None:
    """Compute one surface, or several in a sweep (``-m``)."""
    from fullbatch.app.landscape import crunch_job  # noqa: PLC0415 (imports torch)

    statuses.append(crunch_job(cfg))
    if statuses[-1] >= INTERRUPTED:
        sys.exit(statuses[-1])  # a signal ends a sweep, too


if __name__ == "__main__":
    sys.exit(reported(main, CONFIG) or max(statuses, default=0))
