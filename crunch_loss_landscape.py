"""Loss landscape around a checkpoint: ``python crunch_loss_landscape.py viz=2d impl.checkpoint.name=mine``."""

import sys

from fullbatch.app.hydra_cli import landscape

if __name__ == "__main__":
    sys.exit(landscape())
