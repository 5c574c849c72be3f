"""Train a vision model by (full-batch) gradient descent: ``python train_with_gradient_descent.py hyp=gradreg``."""

import sys

from fullbatch.app.hydra_cli import train

if __name__ == "__main__":
    sys.exit(train())
