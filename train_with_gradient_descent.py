"""Train a vision model by (full-batch) gradient descent: ``python train_with_gradient_descent.py hyp=gradreg``."""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from fullbatch.app.hydra_cli import JobEndedBadlyError, reported, together

CONFIG = Path(__file__).parent / "config"
LOST, INTERRUPTED, LAUNCHING = 4, 128, os.getpid()
statuses: list[int] = []


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="cfg")
def main(cfg: DictConfig) -> None:
    """Run one job, or one after the other in a sweep (``-m``)."""
    from fullbatch.app.train import run_job  # noqa: PLC0415 (imports torch, which `--cfg job` and `--help` can do without)

    statuses.append(run_job(cfg))
    if os.getpid() != LAUNCHING and statuses[-1]:
        raise JobEndedBadlyError(statuses[-1])  # a launcher's process; the one that launched it hears of it
    if statuses[-1] == LOST or statuses[-1] >= INTERRUPTED:
        sys.exit(statuses[-1])  # a signal ends a sweep, too, and so does the end of another process


if __name__ == "__main__":
    sys.exit(together(lambda: reported(main, CONFIG) or max(statuses, default=0)))
