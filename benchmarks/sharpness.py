"""Measure the cost of the sharpness: a warm-started probe during training, compared with a converged cold start.

    python benchmarks/sharpness.py [--data ~/cifar10] [--samples 1000] [--steps 600] [--every 50] [--lr 0.2]

Trains the network of ``benchmarks/edge_of_stability.py`` and measures the largest eigenvalue every 50 steps. Prints the
number of products and the relative error of each measurement, and the CPU time that all of them add to the training.
The cold starts (tolerance 1e-6, random initial vector) are not part of the cost. The exit status is 1 if an error
exceeds 1 % or the cost 50 %.
"""

import argparse
import sys
import time

import torch
from edge_of_stability import network
from rich.console import Console
from rich.table import Table

from fullbatch import FullBatchObjective, loss_function
from fullbatch.analysis.eigenvalues import largest_eigenpairs
from fullbatch.analysis.operators import curvature
from fullbatch.data.dataset import ImageRequest, load_images
from fullbatch.data.loader import BlockFormat, BlockLoader
from fullbatch.optim.descent import Descent
from fullbatch.training.state import TrainState
from fullbatch.training.step import Step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--tolerance", type=float, default=1e-2)
    options = parser.parse_args()

    torch.set_num_threads(1)
    name, path = ("digits", None) if options.data == "digits" else ("imagefolder", options.data)
    data = load_images(name, ImageRequest(path, size=options.samples))
    loader = BlockLoader(data.train, batch_size=1000, format=BlockFormat(data.mean, data.std))
    model = network(data.channels, data.pixels, len(data.classes), seed=0)
    objective, optimizer = (
        FullBatchObjective(model, loss_function("squared"), []),
        Descent(model.parameters(), options.lr),
    )
    take_step = Step(TrainState(model, optimizer), objective, loader)
    training, measuring, products, worst, memory = 0.0, 0.0, 0, 0.0, None
    table = Table("step", "sharpness", "lr sharpness/2", "products", "products of a cold start", "relative error")
    for step in range(options.steps):
        start = time.process_time()
        take_step(step, stochastic=False)
        training += time.process_time() - start
        if (step + 1) % options.every == 0:
            operator, start = curvature(take_step.objective_at(step).plain()), time.process_time()
            warm = largest_eigenpairs(operator, 1, tolerance=options.tolerance, start=memory)
            measuring, memory = measuring + time.process_time() - start, warm.memory
            cold = largest_eigenpairs(operator, 1, tolerance=1e-6)
            value, exact = float(warm.values[0]), float(cold.values[0])
            error, products = abs(value / exact - 1), products + warm.matvecs
            worst = max(worst, error)
            numbers = (
                f"{value:.4f}",
                f"{options.lr * value / 2:.3f}",
                str(warm.matvecs),
                str(cold.matvecs),
                f"{error:.1e}",
            )
            table.add_row(str(step + 1), *numbers)
    console = Console()
    console.print(table)
    console.print(
        f"{products} products, {products / (options.steps // options.every):.1f} per measurement; they add "
        f"{measuring / training:.0%} to the training; largest error {worst:.2%}"
    )
    return int(worst > 0.01 or measuring > 0.5 * training)


if __name__ == "__main__":
    sys.exit(main())
