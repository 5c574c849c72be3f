"""Measure the speed of full-batch training, compared with a plain loop and the limits of the machine: `make bench`.

    python benchmarks/speed.py [--models resnet18] [--batch-sizes 128] [--samples 256] [--turns 5] [--compile]
                               [--only gradient regularized allocator products data overhead digits memory limits
                               scaling kernels] [--json FILE]

Every ratio is the median of ratios within one turn of one run, because machines are noisy.

- gradient: one full-batch gradient with augmentation. The first row is the usual eager loop of research code, in
  float32 and NCHW, with a DataLoader of PIL workers and Python loops over the parameters. It runs in a separate process
  with the defaults of PyTorch and of the C library. The last rows are the network's convolutions and linear layers
  alone. On CUDA there are also rows with TF32 and, with --compile, with mode="reduce-overhead".
- regularized: the same with the regularizer by forward differences.
- allocator: the plain loop without and with freed memory kept in the process. Only on request.
- products: cost of regularizers, losses and Hessian-vector products relative to the plain gradient, on ready blocks.
- data: augmented, normalized blocks alone, from memory on the device and from a DataLoader of PIL workers.
- overhead: our whole step and that of a minimal hand-written loop with the same settings.
- digits: the same for a ResNet-20 on the digits, whose blocks take milliseconds.
- memory: the peak of a gradient beyond the memory before, in MiB and in copies of the parameters.
- limits: rate of matrix products and copy bandwidth.
- scaling: N, 2N and 4N samples; the time per sample should not depend on N.
- kernels: the kernels that take the most time in a gradient. Only on request.

The last table compares the promised speeds for the device with the measured ones.
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
ON_REQUEST = ("allocator", "kernels")


def run(bench: Bench, console: Console) -> list[Timing]:
    """Measure and print the requested groups; those that do not depend on the model run once per block size."""
    options, timings = bench.options, []

    def take(groups: dict[str, Group], model: str, batch_size: int) -> None:
        for name, group in groups.items():
            if name in options.only:
                measured = group(bench, model, batch_size)
                show(measured, console)
                timings.extend(measured)

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
        "--short-turns", type=int, default=3, help="turns of the slow groups: regularized, products, scaling"
    )
    parser.add_argument("--many-turns", type=int, default=40, help="turns of digits, which take one second each")
    default = [name for name in ALL if name not in ON_REQUEST]
    parser.add_argument("--only", nargs="+", choices=ALL, default=default)
    parser.add_argument("--compile", action="store_true", help="also compile (takes minutes per model and block size)")
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
    checked = promises.checked(results, device, fast_bfloat16=has_fast_bfloat16(device))
    promises.show(checked, console)
    console.print(machine(device), highlight=False)
    if options.json is not None:
        write(options.json, timings, device, facts=bench.facts, promises=checked)


if __name__ == "__main__":
    main()
