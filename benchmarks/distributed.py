"""Compare the throughput of two processes of one thread with that of one process of two threads.

    python benchmarks/distributed.py [--model resnet18] [--samples 512] [--batch-size 64] [--repetitions 5]

The two alternate in one run. Prints images per second of the full-batch gradient, and the ratio of the two in each
repetition. Needs two idle cores. Does not measure several GPUs.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from torch import multiprocessing
from torch.nn import functional as F

from fullbatch import FullBatchObjective, build_model
from fullbatch.objective.block_pass import SequentialPass
from fullbatch.runtime.device import describe
from fullbatch.runtime.process_group import ALONE, Group, join_group
from fullbatch.runtime.ranks import Ranks
from fullbatch.runtime.rendezvous import PrivateRendezvous, private_rendezvous


def objective(options: argparse.Namespace, group: Group) -> FullBatchObjective:
    """Return the objective of this process: the same data and model in all, with its share of the blocks."""
    torch.manual_seed(0)
    model = build_model(options.model, channels=3, classes=10, pixels=32)
    inputs, labels = torch.randn(options.samples, 3, 32, 32), torch.randint(10, (options.samples,))
    blocks = list(zip(inputs.split(options.batch_size), labels.split(options.batch_size), strict=True))
    local = blocks[group.share(len(blocks))]
    return FullBatchObjective(model, F.cross_entropy, local, block_pass=SequentialPass(group.reduce))


def seconds(some: FullBatchObjective, threads: int) -> float:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    some.evaluate()
    return time.perf_counter() - start


def run_second(rendezvous: PrivateRendezvous, options: argparse.Namespace) -> None:
    with join_group(Ranks(1, 2), rendezvous, backend="gloo") as group:
        shared = objective(options, group)
        for _ in range(options.repetitions + 1):
            group.broadcast(b"")  # waits while the first process measures itself alone
            seconds(shared, 1)


def measured(options: argparse.Namespace, group: Group) -> list[tuple[float, float]]:
    """Return the seconds of one process and of two, for each repetition."""
    alone, shared = objective(options, ALONE), objective(options, group)
    times = []
    for _ in range(options.repetitions + 1):
        one = seconds(alone, 2)
        group.broadcast(b"")
        times.append((one, seconds(shared, 1)))
    return times[1:]  # the first warms up


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args(arguments)

    with private_rendezvous(2) as (first, second):
        other: Any = multiprocessing.get_context("spawn").Process(target=run_second, args=(second, options))
        other.start()
        second.close()
        with join_group(Ranks(0, 2), first, backend="gloo") as group:
            times = measured(options, group)
        other.join()

    console = Console()
    for name, column in (("one process, two threads", 0), ("two processes, one thread each", 1)):
        rate = statistics.median(options.samples / pair[column] for pair in times)
        console.print(f"{name}: {rate:.0f} images/s")
    ratios = sorted(one / two for one, two in times)
    console.print(
        f"two processes have {statistics.median(ratios):.2f} times the throughput of one "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} repetitions)"
    )
    console.print(f"{describe(torch.device('cpu'))}, Python {platform.python_version()}, {platform.machine()}")


if __name__ == "__main__":
    main()
