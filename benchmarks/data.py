"""Compare the speed of an LMDB database with that of a DataLoader that decodes image files.

    python benchmarks/data.py --path FOLDER [--samples 50000] [--batch-size 128] [--workers 2] [--pixels 32]
    python benchmarks/data.py --path FOLDER --memory [--pixels 224] [--crop] ...

FOLDER contains train/<class>/* and val/<class>/*. Both make blocks of float32 images on the device, of the same
samples in the same order, once each in one run. Neither keeps images in memory, and the files are read once before.
Prints images per second, their ratio, and the peak of anonymous memory during reading (without the memory-mapped file).

With --memory, all images are read from the files once cached and once streamed, each in a separate process. Prints the
peak memory of this process and its workers. With --crop, images are also streamed at their original size and cropped in
the workers (RandomResizedCrop).
"""

import argparse
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fullbatch.data.augmentation import Augmentation
from fullbatch.data.dataset import ImageRequest, ImageSet, load_images
from fullbatch.data.frozen.build import Writing, stored_images
from fullbatch.data.frozen.copies import Recipe
from fullbatch.data.loader import BlockFormat, BlockLoader, ReadOptions
from fullbatch.runtime.device import describe, find_device
from fullbatch.runtime.lmdb import LMDBOptions


def seconds(blocks: Iterable[Tensor], samples: int) -> float:
    """Return the time of one pass over the blocks."""
    start = time.perf_counter()
    count = sum(len(block) for block in blocks)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    assert count == samples
    return time.perf_counter() - start


def own_memory() -> float:
    """Return the anonymous memory of this process in MiB, without mapped files; NaN on systems other than Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else ()
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), math.nan)


def decoded(options: argparse.Namespace, device: torch.device) -> Iterable[Tensor]:
    """Yield blocks as usual code makes them: files decoded by the workers of a DataLoader."""
    transform = v2.Compose([v2.ToImage(), v2.Resize(options.pixels), v2.ToDtype(torch.float32, scale=True)])
    folder = Subset(ImageFolder(str(options.path / "train"), transform), range(options.samples))
    for images, _ in DataLoader(folder, options.batch_size, num_workers=options.workers):
        yield images.to(device)


def stored(options: argparse.Namespace, device: torch.device, folder: str) -> BlockLoader:
    """Build a database and return a loader of its blocks."""
    request = ImageRequest(
        str(options.path), pixels=options.pixels, size=options.samples, mean=[0.0] * 3, std=[1.0] * 3
    )
    data = load_images("imagefolder", request)
    recipe = Recipe("benchmark", data.train, {}, seed=0)
    images = stored_images(recipe, Path(folder) / "db", LMDBOptions(), Writing(num_workers=options.workers))
    return BlockLoader(
        ImageSet(images, data.train.labels, data.classes),
        batch_size=options.batch_size,
        format=BlockFormat(device=device),
        reading=ReadOptions(caching=False, num_workers=options.workers if options.read_in_workers else 0),
    )


def most_memory(options: argparse.Namespace, device: torch.device, way: str) -> tuple[float, float]:
    """Return images per second, and the MiB that this process and its largest worker use beyond those at the start."""
    whole = way == "whole"
    request = ImageRequest(
        path=str(options.path),
        channels=3,
        pixels=options.pixels,
        size=options.samples,
        mean=[0.0] * 3,
        std=[1.0] * 3,
        resize_on_read=not whole,
    )
    data = load_images("imagefolder", request)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loader = BlockLoader(
        data.train,
        batch_size=options.batch_size,
        format=BlockFormat(device=device),
        augmentation=Augmentation({"RandomResizedCrop": options.pixels}, 0) if whole else None,
        reading=ReadOptions(caching="ram" if way == "cached" else False, num_workers=options.workers),
    )
    took = seconds((block.inputs for block in loader.blocks(0)), options.samples)
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    own, children = (resource.getrusage(kind).ru_maxrss for kind in kinds)
    return options.samples / took, (own - start + max(0, children - start)) / 1024


def show_memory(options: argparse.Namespace, console: Console) -> None:
    """Measure each way in a separate process, because the peak memory of a process never decreases."""
    size = options.samples * 3 * options.pixels**2 / 2**20
    table = Table("", "images/s", "MiB", title=f"{options.samples:,} images, {size:,.0f} MiB as bytes")
    for way in ("cached", "streamed", *(("whole",) if options.crop else ())):
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        rate, most = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        table.add_row(way, f"{float(rate):,.0f}", f"{float(most):,.0f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="processes that decode files and build the database")
    parser.add_argument("--read-in-workers", action="store_true", help="read the database in the workers, too")
    parser.add_argument(
        "--memory", action="store_true", help="compare the memory of cached and streamed images instead of speed"
    )
    parser.add_argument("--crop", action="store_true", help="with --memory, also crop images at their original size")
    parser.add_argument("--way", choices=("cached", "streamed", "whole"), help=argparse.SUPPRESS)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    device, console = find_device(options.device), Console()
    if options.way:
        console.print(*most_memory(options, device, options.way))
        return
    if options.memory:
        show_memory(options, console)
        return
    with tempfile.TemporaryDirectory() as folder:
        loader = stored(options, device, folder)
        fast = seconds((block.inputs for block in loader.blocks(0)), options.samples)
        before, blocks = own_memory(), loader.blocks(1)
        grown = max(own_memory() for _ in blocks) - before
        slow = seconds(decoded(options, device), options.samples)
    table = Table("", "images/s", title=f"{options.samples:,} images, blocks of {options.batch_size}")
    table.add_row("database", f"{options.samples / fast:,.0f}")
    table.add_row(f"files, {options.workers} workers", f"{options.samples / slow:,.0f}")
    console.print(table)
    console.print(f"the database is {slow / fast:.1f} times as fast; reading it takes {grown:.0f} MiB")
    console.print(f"{describe(device)}, Python {platform.python_version()}, {platform.machine()}")


if __name__ == "__main__":
    main()
