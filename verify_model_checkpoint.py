"""Validation loss and accuracy of a checkpoint: ``python verify_model_checkpoint.py impl.checkpoint.name=mine``."""

import sys

from fullbatch.app.hydra_cli import verify

if __name__ == "__main__":
    sys.exit(verify())
