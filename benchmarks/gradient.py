"""Speed of one full-batch gradient beside a plain PyTorch loop over the same blocks, alternating in one process.

    python benchmarks/gradient.py [--model resnet18] [--samples 512] [--batch-size 128] [--repetitions 5] [--quick]

Prints pictures per second and, since machines are noisy, the ratios to the plain loop of the same repetition; and how
many losses, by forward passes alone, take the time of one gradient. ``--quick`` leaves out the regularizers.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch import FullBatchObjective, GradRegularizer, build_model
from fullbatch.runtime.device import describe, find_device

Pair = tuple[Tensor, Tensor]


def plain_loop(model: nn.Module, blocks: Sequence[Pair]) -> None:
    """What anybody would write: backward on each block, gradients add up in ``.grad``."""
    model.zero_grad()
    total = sum(len(labels) for _, labels in blocks)
    for inputs, labels in blocks:
        (F.cross_entropy(model(inputs), labels, reduction="sum") / total).backward()


def contenders(model: nn.Module, blocks: Sequence[Pair], *, quick: bool) -> dict[str, Callable[[], object]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def objective(**options: object) -> FullBatchObjective:
        regularizer = None
        if options:
            regularizer = GradRegularizer(model, optimizer, F.cross_entropy, block_strength=0.5, **options)
        return FullBatchObjective(model, F.cross_entropy, blocks, regularizer=regularizer)

    table: dict[str, Callable[[], object]] = {"plain loop": lambda: plain_loop(model, blocks)}
    table["full-batch gradient"] = objective().evaluate
    table["loss only"] = objective().loss
    for name in () if quick else ("forward-differences", "central-differences", "autograd", "forward-over-reverse"):
        table[f"regularized, {name}"] = objective(implementation=name).evaluate
    return table


def seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    device = find_device(options.device)
    model = build_model(options.model, channels=3, classes=10, pixels=32).to(device)
    inputs = torch.randn(options.samples, 3, 32, 32, device=device)
    labels = torch.randint(10, (options.samples,), device=device)
    blocks = list(zip(inputs.split(options.batch_size), labels.split(options.batch_size), strict=True))

    table = contenders(model, blocks, quick=options.quick)
    for run in table.values():
        seconds(run, device)  # warm up
    times = [{name: seconds(run, device) for name, run in table.items()} for _ in range(options.repetitions)]

    shown = Table("", "pictures/s", "time / plain loop", title=f"{options.model}, blocks of {options.batch_size}")
    for name in table:
        rate = statistics.median(options.samples / row[name] for row in times)
        ratio = statistics.median(row[name] / row["plain loop"] for row in times)
        shown.add_row(name, f"{rate:.0f}", f"{ratio:.2f}")
    console = Console()
    console.print(shown)
    losses = statistics.median(row["full-batch gradient"] / row["loss only"] for row in times)
    console.print(f"a gradient takes the time of {losses:.2f} losses")
    console.print(f"{describe(device)}, Python {platform.python_version()}, {platform.machine()}")


if __name__ == "__main__":
    main()
