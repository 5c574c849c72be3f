"""Error of the full gradient by dtype and block size: ``python measure_floating_point_accuracy.py``."""

import sys

from fullbatch.app.hydra_cli import gradient_error

if __name__ == "__main__":
    sys.exit(gradient_error())
