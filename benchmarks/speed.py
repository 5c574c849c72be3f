"""Speed of full-batch training beside a plain loop, its parts, and the limits of the machine; `make bench`.

    python benchmarks/speed.py [--models resnet18] [--batch-sizes 128] [--samples 256] [--turns 5] [--compile]
                               [--only gradient regularized allocator products data overhead digits memory limits
                               scaling kernels] [--json FILE]

Every ratio is the median of ratios within one turn of one run, since machines are noisy.

- gradient: one full-batch gradient with augmentation. First row: the plain eager loop that such research code usually
  is, in float32 and NCHW, with a DataLoader of PIL workers and Python over the parameters, in a process of its own with
  the defaults of PyTorch and of the C library. Last rows: the network's convolutions and products alone.
  On CUDA also with TF32, replayed as CUDA graphs, and with two and four blocks in flight.
- regularized: the same with the regularizer by forward differences.
- allocator: the plain loop, and the same where freed memory stays with the process. Only when asked for.
- products: what regularizers, losses and Hessian-vector products cost beside the plain gradient, on blocks at hand.
- data: augmented, normalized blocks alone, from memory on the device and from a DataLoader of PIL workers.
- overhead: a whole step of ours and of a minimal hand-written loop at equal settings.
- digits: the same for a ResNet-20 on the digits, whose blocks take milliseconds.
- memory: the peak of a gradient beyond what is there before, in MiB, and in copies of the parameters.
- limits: rate of matrix products and copy bandwidth.
- scaling: N, 2N and 4N samples; the time of each should not depend on N.
- kernels: which take the time of a gradient. Only when asked for.

At the end: what the project promises of its speed on such a device, and whether it was held.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import promises
import torch
from bench import Bench
from gradients import allocator, gradient, regularized
from kernels import kernels
from limits import limits
from products import memory, products
from rich.console import Console
from steps import data, digits, overhead, scaling
from timing import Timing, machine, show, write

from fullbatch.runtime.device import find_device, has_fast_bfloat16, set_up

Group = Callable[[Bench, str, int], list[Timing]]
OF_BLOCKS: dict[str, Group] = {"data": data, "digits": digits}
OF_MODELS: dict[str, Group] = {
    "gradient": gradient,
    "regularized": regularized,
    "allocator": allocator,
    "products": products,
    "overhead": overhead,
    "scaling": scaling,
}
PRINTED = {"memory": memory, "kernels": kernels}
ALL = (*OF_BLOCKS, *OF_MODELS, *PRINTED, "limits")
UNUSUAL = ("allocator", "kernels")


def run(bench: Bench, console: Console) -> list[Timing]:
    """Measure and print what the options ask for; what does not depend on model or block size once."""
    options, timings = bench.options, []

    def take(groups: dict[str, Group], model: str, batch_size: int) -> None:
        for name, group in groups.items():
            if name in options.only:
                found = group(bench, model, batch_size)
                show(found, console)
                timings.extend(found)

    if "limits" in options.only:
        limits(bench, console)
    for batch_size in options.batch_sizes:
        take(OF_BLOCKS, "", batch_size)
        for model in options.models:
            take(OF_MODELS, model, batch_size)
            for name, group in PRINTED.items():
                if name in options.only:
                    group(bench, model, batch_size, console)
    return timings


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[128])
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--short-turns", type=int, default=3, help="turns of what takes long: regularized, products, scaling"
    )
    parser.add_argument("--many-turns", type=int, default=40, help="turns of digits, which take a second")
    usual = [name for name in ALL if name not in UNUSUAL]
    parser.add_argument("--only", nargs="+", choices=ALL, default=usual)
    parser.add_argument("--compile", action="store_true", help="compile, too (minutes for each model and block size)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=2, help="processes of the DataLoader with PIL")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    options, console = parsed(), Console()
    device = find_device(options.device)
    set_up(threads=options.threads, benchmark=True, deterministic=False)
    bench = Bench(options, device)
    timings = run(bench, console)
    results = promises.Results(timings, bench.facts)
    held = promises.checked(results, device, fast_bfloat16=has_fast_bfloat16(device))
    promises.show(held, console)
    console.print(machine(device), highlight=False)
    if options.json is not None:
        write(options.json, timings, device, facts=bench.facts, promises=held)


if __name__ == "__main__":
    main()
