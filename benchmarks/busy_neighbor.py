"""Measure how a busy process on the same machine slows down training.

    python benchmarks/busy_neighbor.py [--steps 6] [--pairs 3] [--environment NAME=VALUE[,NAME=VALUE] ...]

Each pair times regularized full-batch steps of a ResNet-20 on the digits, those of `make demo`, first alone and then
beside a process that keeps one core busy. One more row for each ``--environment``, given to a process of its own. The
last column divides the time alone by that of the default, measured once more at the start.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

BUSY = "while True: pass"


@contextmanager
def busy_neighbor() -> Iterator[None]:
    """Keep one core busy."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def measure(steps: int, pairs: int) -> Iterator[tuple[float, float]]:
    """Yield the seconds per step alone and beside a busy process, for each pair."""
    import torch  # noqa: PLC0415 (the parent process has no threads of its own)
    from torch import nn  # noqa: PLC0415

    from fullbatch import FullBatchObjective, GradRegularizer, build_model  # noqa: PLC0415
    from fullbatch.data.dataset import ImageRequest, load_images  # noqa: PLC0415

    torch.set_num_threads(int(os.environ["THREADS"]))
    digits = load_images("digits", ImageRequest()).train
    inputs = digits.images.fetch(torch.arange(len(digits))) / 255
    blocks = list(zip(inputs.split(128), digits.labels.split(128), strict=True))
    model = build_model("resnet20", channels=1, classes=10, pixels=8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    regularizer = GradRegularizer(model, optimizer, nn.CrossEntropyLoss(), block_strength=0.5)
    objective = FullBatchObjective(model, nn.CrossEntropyLoss(), blocks, regularizer=regularizer)

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            gradient = objective.evaluate(update_buffers=True).gradient
            for parameter, entry in zip(model.parameters(), gradient, strict=True):
                parameter.grad = entry
            optimizer.step()
        return (time.perf_counter() - start) / steps

    seconds()
    for _ in range(pairs):
        alone = seconds()
        with busy_neighbor():
            yield alone, seconds()


def run(environment: Sequence[str], arguments: argparse.Namespace) -> list[tuple[float, float]]:
    """Measure in a process of its own with the variables ``NAME=VALUE`` added to the environment."""
    command = [sys.executable, __file__, "--measure", f"--steps={arguments.steps}", f"--pairs={arguments.pairs}"]
    variables = os.environ | {"THREADS": str(arguments.threads)} | dict(item.split("=", 1) for item in environment)
    output = subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout
    return [(float(alone), float(beside)) for alone, beside in map(str.split, output.splitlines())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="steps per measurement")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of measurements per process")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--environment", nargs="*", default=[], metavar="NAME=VALUE[,NAME=VALUE]")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        for alone, beside in measure(arguments.steps, arguments.pairs):
            print(alone, beside, flush=True)
        return
    print(f"{'environment':45s} {'alone':>8s} {'beside':>8s} {'slowdown':>8s} {'alone, relative to the first':>28s}")
    first = statistics.median(alone for alone, _ in run((), arguments))
    for name in ("", *arguments.environment):
        pairs = run(name.split(",") if name else (), arguments)
        alone, beside = (statistics.median(times) for times in zip(*pairs, strict=True))
        slowdown = statistics.median(beside / alone for alone, beside in pairs)
        print(f"{name or 'default':45s} {alone:7.2f}s {beside:7.2f}s {slowdown:8.2f} {alone / first:28.2f}", flush=True)


if __name__ == "__main__":
    main()
