"""Training loss against gradient evaluations: every optimizer on the same exact full-batch objective.

    python benchmarks/optimizers.py --data ~/cifar10 [--samples 5000] [--evaluations 100] [--output optimizers]

``--data`` is a folder of images (train/<class>/*) or ``digits``, which ship with scikit-learn. The network is small and
smooth and has no batch norm, so the loss of a sample depends only on the sample. The horizontal axis is the cost: a
gradient evaluation counts 1, a loss evaluation 1/3. Optimizers with a learning rate to choose are run with three
values, and the run with the lowest final loss is drawn; line searches have none to choose. Writes <output>.png and
<output>.csv with all runs. Takes ten minutes on one core for 5,000 images of 32x32.
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from fullbatch import FullBatchObjective
from fullbatch.data.dataset import ImageRequest, load_images
from fullbatch.data.loader import BlockFormat, BlockLoader
from fullbatch.optim.descent import Descent
from fullbatch.optim.fista import FISTA
from fullbatch.optim.lbfgs import LBFGS
from fullbatch.optim.sam import SAM
from fullbatch.optim.wolfe import Wolfe
from fullbatch.training.state import TrainState
from fullbatch.training.step import DivergedError, Step
from fullbatch.training.stopping import evaluations_spent

Build = Callable[[list[nn.Parameter], float], Optimizer]
MOMENTUM = {"momentum": 0.9, "nesterov": True}
CONTENDERS: dict[str, tuple[Build, list[float]]] = {
    "gd": (lambda p, lr: Descent(p, lr, **MOMENTUM), [0.03, 0.1, 0.3]),
    "gd, Wolfe": (lambda p, lr: Descent(p, lr, **MOMENTUM, step_rule=Wolfe()), [0.1]),
    "L-BFGS": (LBFGS, [1.0]),
    "FISTA": (FISTA, [0.03, 0.1, 0.3]),
    "Adam": (lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.0), [0.003, 0.01, 0.03]),
    "SAM": (lambda p, lr: SAM(Descent(p, lr, **MOMENTUM)), [0.03, 0.1, 0.3]),
}


@dataclass(frozen=True)
class Point:
    optimizer: str
    lr: float
    step: int
    evaluations: float
    train_loss: float
    train_acc: float


def network(channels: int, pixels: int, classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    quarter = (pixels + 3) // 4
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(16 * quarter * quarter, classes),
    )


def data_named(name: str, samples: int | None) -> tuple[BlockLoader, tuple[int, int, int]]:
    """Return a loader of the training blocks, with channels, pixels and number of classes."""
    if name == "digits":
        data = load_images("digits", ImageRequest(size=samples))
    else:
        data = load_images("imagefolder", ImageRequest(str(Path(name).expanduser()), size=samples))
    loader = BlockLoader(data.train, batch_size=1000, format=BlockFormat(data.mean, data.std))
    return loader, (data.channels, data.pixels, len(data.classes))


def trajectory(name: str, lr: float, loader: BlockLoader, model: nn.Module, budget: float) -> Iterator[Point]:
    """Train until the budget is spent; yield the values at the start of each step."""
    optimizer = CONTENDERS[name][0](list(model.parameters()), lr)
    take_step = Step(TrainState(model, optimizer), FullBatchObjective(model, F.cross_entropy, []), loader)
    spent, step = 0.0, 0
    while spent <= budget:
        try:
            row = take_step(step, stochastic=False)
        except DivergedError:
            yield Point(name, lr, step, spent, float("inf"), 0.0)
            return
        yield Point(name, lr, step, spent, row["train_loss"], row["train_acc"])
        spent, step = spent + evaluations_spent(row), step + 1


def lowest(points: list[Point], name: str) -> float:
    """Return the learning rate with the lowest final loss."""
    ends = {point.lr: point.train_loss for point in points if point.optimizer == name}
    return min(ends, key=lambda lr: ends[lr])


def draw(points: list[Point], path: Path, title: str) -> None:
    import matplotlib.pyplot as plt  # noqa: PLC0415 (an optional dependency)

    figure, axes = plt.subplots(figsize=(6, 4), constrained_layout=True)
    for name in CONTENDERS:
        lr = lowest(points, name)
        own = [point for point in points if (point.optimizer, point.lr) == (name, lr)]
        label = name if len(CONTENDERS[name][1]) == 1 else f"{name}, lr {lr:g}"
        axes.semilogy([p.evaluations for p in own], [p.train_loss for p in own], label=label)
    axes.set(xlabel="gradient evaluations of the training set (a loss alone: 1/3)", ylabel="training loss", title=title)
    for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatted("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--evaluations", type=float, default=100)
    parser.add_argument("--output", type=Path, default=Path("optimizers"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    loader, shape = data_named(options.data, options.samples)
    console, points = Console(), []
    for name, (_, rates) in CONTENDERS.items():
        for lr in rates:
            start = time.perf_counter()
            points += trajectory(name, lr, loader, network(*shape, options.seed), options.evaluations)
            seconds = time.perf_counter() - start
            console.print(f"{name}: training loss {points[-1].train_loss:.4g} with lr {lr:g}, {seconds:.0f} s")
    with options.output.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, Point.__annotations__)
        writer.writeheader()
        writer.writerows(vars(point) for point in points)
    draw(points, options.output.with_suffix(".png"), f"{loader.size:,} images, network without batch norm")


if __name__ == "__main__":
    main()
