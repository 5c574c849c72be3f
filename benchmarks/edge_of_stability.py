"""Reproduce the edge of stability (Cohen et al., ICLR 2021): the sharpness rises to 2/lr and stays there.

    python benchmarks/edge_of_stability.py --data ~/cifar10 [--samples 1000] [--steps 3000] [--lr 0.07 0.1]

Trains by full-batch gradient descent with a constant learning rate, without momentum, weight decay and warm-up. The
loss is half the squared distance to the one-hot labels; the model is a tanh network with two hidden layers of 64 units
on images averaged to 8x8. ``--data`` is a folder of images (train/<class>/*) or ``digits``, which ship with
scikit-learn. Prints the median of lr sharpness/2 over the last third of the steps for each learning rate, and writes
<output>.png and <output>.csv. The exit status is 1 if a median is outside [0.9, 1.2].
"""

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from fullbatch import FullBatchObjective, loss_function
from fullbatch.analysis.figure import draw_edge_of_stability
from fullbatch.analysis.probes import ProbeSchedule
from fullbatch.analysis.sharpness_probe import SharpnessProbe
from fullbatch.build.probes import observe
from fullbatch.data.dataset import ImageRequest, load_images
from fullbatch.data.loader import BlockFormat, BlockLoader
from fullbatch.optim.descent import Descent
from fullbatch.optim.schedules import constant
from fullbatch.training.state import Row, TrainState
from fullbatch.training.step import Step
from fullbatch.training.trainer import Trainer, TrainingPlan


def network(channels: int, pixels: int, classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.AvgPool2d(max(pixels // 8, 1)),
        nn.Flatten(),
        nn.Linear(channels * 64, 64),
        nn.Tanh(),
        nn.Linear(64, 64),
        nn.Tanh(),
        nn.Linear(64, classes),
    )


def descend(model: nn.Module, loader: BlockLoader, lr: float, steps: int, every: int) -> list[Row]:
    """Train and return the rows; the sharpness is measured after every ``every`` steps."""
    objective = FullBatchObjective(model, loss_function("squared"), [])
    optimizer = Descent(model.parameters(), lr)
    validation = objective.over(loader.blocks(0)).loss()  # stands in for validation, which this script does not need
    state = TrainState(model, optimizer)
    plan = TrainingPlan(steps, constant, lambda step: False, validate_every=steps)
    probes = ProbeSchedule(lambda state, note: observe(trainer, state, note), [(every, SharpnessProbe())])
    trainer = Trainer(state, Step(state, objective, loader), plan, validate=lambda *_: validation, probes=probes)
    trainer.run()
    return state.rows


def final_median(rows: list[Row], lr: float) -> float:
    """Return the median of lr sharpness/2 over the last third."""
    last = rows[len(rows) * 2 // 3 :]
    return statistics.median(lr * row["sharpness"] / 2 for row in last if "sharpness" in row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--every", type=int, default=30)
    parser.add_argument("--lr", type=float, nargs="+", default=[0.07, 0.1])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("edge_of_stability"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    name, path = ("digits", None) if options.data == "digits" else ("imagefolder", options.data)
    data = load_images(name, ImageRequest(path, size=options.samples))
    loader = BlockLoader(data.train, batch_size=1000, format=BlockFormat(data.mean, data.std))
    console, runs, medians = Console(), {}, []
    for lr in options.lr:
        start, model = time.perf_counter(), network(data.channels, data.pixels, len(data.classes), options.seed)
        rows = runs[f"lr {lr:g}, threshold 2/lr = {2 / lr:.3g}"] = descend(
            model, loader, lr, options.steps, options.every
        )
        medians.append(final_median(rows, lr))
        products = sum(row.get("sharpness_matvecs", 0) for row in rows)
        console.print(
            f"lr {lr:g}: median of lr sharpness/2 over the last third {medians[-1]:.3f}, training loss "
            f"{rows[-1]['train_loss']:.4f}, {products:.0f} products, {time.perf_counter() - start:.0f} s"
        )
    title = f"gradient descent on {options.samples:,} images, squared loss, tanh network"
    draw_edge_of_stability(runs, Path(f"{options.output}.png"), title)
    with Path(f"{options.output}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["lr", "step", "train_loss", "sharpness"])
        for lr, rows in zip(options.lr, runs.values(), strict=True):
            writer.writerows((lr, row["step"], row["train_loss"], row.get("sharpness", "")) for row in rows)
    return int(not all(0.9 <= median <= 1.2 for median in medians))


if __name__ == "__main__":
    sys.exit(main())
