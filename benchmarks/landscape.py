"""Compare the cost of a point of a loss landscape with that of a plain evaluation of the loss.

    python benchmarks/landscape.py [--model resnet18] [--samples 512] [--batch-size 128] [--repetitions 7]

The two alternate in one process, in evaluation mode and without regularizer. The point moves the parameters along two
directions and restores them.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from torch.nn import functional as F

from fullbatch import FullBatchObjective, build_model, random_directions
from fullbatch.landscape.surface import PointEvaluator
from fullbatch.runtime.device import describe, find_device


def seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.process_time() if device.type == "cpu" else time.perf_counter()
    run()
    if device.type == "cpu":
        return time.process_time() - start  # time of other programs is excluded
    torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    device = find_device(options.device)
    model = build_model(options.model, channels=3, classes=10, pixels=32).to(device).eval()
    inputs = torch.randn(options.samples, 3, 32, 32, device=device)
    labels = torch.randint(10, (options.samples,), device=device)
    blocks = list(zip(inputs.split(options.batch_size), labels.split(options.batch_size), strict=True))
    objective = FullBatchObjective(model, F.cross_entropy, blocks)
    evaluate = PointEvaluator(objective, random_directions(model))
    table: dict[str, Callable[[], object]] = {
        "loss": lambda: float(objective.loss().loss),
        "point": lambda: evaluate((0.1, -0.2)),
    }
    for run in table.values():
        seconds(run, device)  # warm-up
    times = [{name: seconds(run, device) for name, run in table.items()} for _ in range(options.repetitions)]
    ratio = statistics.median(row["point"] / row["loss"] for row in times)
    loss = statistics.median(row["loss"] for row in times)
    console = Console()
    console.print(f"a point takes {ratio:.3f} times as long as one evaluation of the loss ({loss:.2f} s)")
    console.print(f"{options.model}, {options.samples} samples in blocks of {options.batch_size}")
    console.print(f"{describe(device)}, Python {platform.python_version()}, {platform.machine()}")


if __name__ == "__main__":
    main()
