"""Error of the full gradient, run to run, by dtype and block size: ``python measure_floating_point_accuracy.py``."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from fullbatch.app.hydra_cli import reported

CONFIG = Path(__file__).parent / "config"
statuses: list[int] = []


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="cfg")
def main(cfg: DictConfig) -> None:
    """Measure one configuration, or several in a sweep (``-m``)."""
    from fullbatch.app.gradient_error import measure_job  # noqa: PLC0415 (imports torch)

    statuses.append(measure_job(cfg))


if __name__ == "__main__":
    sys.exit(reported(main, CONFIG) or max(statuses, default=0))
