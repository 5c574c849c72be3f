"""Speed of full-batch training beside a plain loop, its parts, and the limits of the machine; `make bench`.

    python benchmarks/speed.py [--models resnet18] [--batch-sizes 128] [--samples 512] [--turns 5]
                               [--only gradient products data overhead memory limits scaling] [--json FILE]

Every ratio is the median of ratios within one turn of one process, since machines are noisy.

- gradient: one full-batch gradient with augmentation. First row: the plain eager loop that such research code usually
  is, in float32 and NCHW, with a DataLoader of PIL workers and Python over the parameters.
- products: what regularizers, losses and Hessian-vector products cost beside the plain gradient, on blocks at hand.
- data: augmented, normalized blocks alone, from memory on the device and from a DataLoader of PIL workers.
- overhead: a whole step of ours and of a minimal hand-written loop at equal settings.
- memory: the peak of a gradient beyond what is there before, in MiB, and in copies of the parameters.
- limits: rate of matrix products, copy bandwidth, and the network's convolutions and products alone.
- scaling: N, 2N and 4N samples; the time of each should not depend on N.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from limits import limits, memory
from PIL import Image
from rich.console import Console
from timing import Case, Timing, machine, measure, show, write
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fullbatch import FullBatchObjective, GradRegularizer, build_model
from fullbatch.data.augmentation import Augmentation
from fullbatch.data.blocks import BlockLoader
from fullbatch.data.datasets import PictureSet, TensorPictures, load_pictures
from fullbatch.runtime.device import find_device, has_fast_bfloat16, set_up
from fullbatch.training.steps import Step

MEAN, STD = 0.5, 0.25  # of each channel
CHANNELS_LAST = torch.channels_last


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures as torchvision's data sets give them: an array, PIL, transforms."""

    def __init__(self, pictures: Tensor, labels: Tensor) -> None:
        self._arrays, self._labels = pictures.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
        cropped = [v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        normalized = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([MEAN] * 3, [STD] * 3)]
        self._transform = v2.Compose([*cropped, *normalized])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._arrays[index])), self._labels[index]


class Bench:
    """Pictures (uint8 [N, C, H, W]) with labels, and everything that is built for them."""

    def __init__(self, pictures: Tensor, labels: Tensor, options: argparse.Namespace, device: torch.device) -> None:
        self.pictures, self.labels, self.options, self.device = pictures, labels, options, device
        self.turns = options.turns

    def model(self, name: str, memory_format: torch.memory_format = torch.contiguous_format) -> nn.Module:
        torch.manual_seed(0)
        _, channels, pixels, _ = self.pictures.shape
        model = build_model(name, channels=channels, classes=10, pixels=pixels)
        return model.to(self.device, memory_format=memory_format)

    def loader(self, batch_size: int, *, augmented: bool = True, times: int = 1, **options: Any) -> BlockLoader:
        augmentation = Augmentation({"RandomCrop": [32, 4], "RandomHorizontalFlip": 0.5}, 0) if augmented else None
        pictures, labels = self.pictures.repeat(times, 1, 1, 1), self.labels.repeat(times)
        data = PictureSet(TensorPictures(pictures), labels, tuple("0123456789"))
        return BlockLoader(
            data,
            batch_size=batch_size,
            mean=[MEAN] * pictures.shape[1],
            std=[STD] * pictures.shape[1],
            augmentation=augmentation,
            device=self.device,
            caching="device",
            **options,
        )

    def workers(self, batch_size: int) -> DataLoader[tuple[Tensor, int]]:
        workers = self.options.workers
        return DataLoader(
            Pictures(self.pictures, self.labels), batch_size, num_workers=workers, persistent_workers=True
        )

    def objective(self, model: nn.Module, data: Any, **options: Any) -> FullBatchObjective:
        return FullBatchObjective(model, F.cross_entropy, data, **options)

    def case(self, name: str, run: Callable[[], object], samples: int | None = None) -> Case:
        return Case(name, run, len(self.labels) if samples is None else samples)


def research_loop(model: nn.Module, loader: DataLoader[tuple[Tensor, int]], device: torch.device) -> None:
    """The average gradient, as it is usually written."""
    parameters = list(model.parameters())
    average = [torch.zeros_like(parameter) for parameter in parameters]
    for inputs, labels in loader:
        loss = F.cross_entropy(model(inputs.to(device)), labels.to(device))
        for number, gradient in enumerate(torch.autograd.grad(loss, parameters)):
            average[number] += gradient / len(loader)
        loss.item()


def gradient(bench: Bench, model: str, batch_size: int) -> list[Timing]:
    channels_last = bench.model(model, CHANNELS_LAST)
    nchw, device = bench.model(model), bench.device
    loop = partial(research_loop, nchw, bench.workers(batch_size), device)
    blocks = {
        "float32": bench.objective(nchw, bench.loader(batch_size).blocks(0)),
        "float32, channels_last": bench.objective(
            channels_last, bench.loader(batch_size, memory_format=CHANNELS_LAST).blocks(0)
        ),
    }
    if has_fast_bfloat16(device):
        data = bench.loader(batch_size, memory_format=CHANNELS_LAST).blocks(0)
        blocks["bfloat16, channels_last"] = bench.objective(channels_last, data, mixed_precision=torch.bfloat16)
    if bench.options.compile:
        compiled = bench.model(model, CHANNELS_LAST)
        compiled.compile(dynamic=False)
        low = torch.bfloat16 if has_fast_bfloat16(device) else False
        data = bench.loader(batch_size, memory_format=CHANNELS_LAST).blocks(0)
        blocks["the same, compiled"] = bench.objective(compiled, data, mixed_precision=low)
    cases = [bench.case("plain loop", loop), *(bench.case(name, o.evaluate) for name, o in blocks.items())]
    return measure(f"gradient: {model}, blocks of {batch_size}", cases, bench.turns, device)


def products(bench: Bench, model: str, batch_size: int) -> list[Timing]:
    network, data = bench.model(model), list(bench.loader(batch_size).blocks(0))
    pairs = [(inputs, labels) for inputs, labels, _ in data]
    plain, optimizer = bench.objective(network, pairs), torch.optim.SGD(network.parameters(), 0.1)
    cases = [bench.case("gradient", plain.evaluate), bench.case("loss alone", plain.loss)]
    for name in ("forward-differences", "central-differences", "autograd", "forward-over-reverse"):
        regularizer = GradRegularizer(network, optimizer, F.cross_entropy, block_strength=0.5, implementation=name)
        cases.append(
            bench.case(f"regularized, {name}", bench.objective(network, pairs, regularizer=regularizer).evaluate)
        )
    direction = plain.evaluate().gradient
    cases += [
        bench.case(f"Hessian-vector product, {name}", partial(plain.hessian_product, direction, name))
        for name in ("autograd", "forward-over-reverse")
    ]
    return measure(f"products: {model}, blocks of {batch_size}", cases, bench.turns, bench.device)


def data(bench: Bench, model: str, batch_size: int) -> list[Timing]:
    del model
    workers, blocks = bench.workers(batch_size), bench.loader(batch_size).blocks(0)

    def read() -> None:
        for inputs, labels in workers:
            inputs.to(bench.device), labels.to(bench.device)

    cases = [bench.case(f"PIL, {bench.options.workers} workers", read)]
    cases.append(bench.case("on the device", lambda: sum(len(block.labels) for block in blocks)))
    return measure(f"data: blocks of {batch_size}", cases, bench.turns, bench.device)


def minimal_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, pictures: Tensor, labels: Tensor, size: int
) -> None:
    """A step as short as it can be written: no augmentation, no records but the loss."""
    optimizer.zero_grad()
    total = torch.zeros((), device=pictures.device)
    for part, targets in zip(pictures.split(size), labels.split(size), strict=True):
        loss = F.cross_entropy(model((part.float() - 255 * MEAN) / (255 * STD)), targets, reduction="sum") / len(labels)
        loss.backward()
        total += loss.detach()
    optimizer.step()
    total.item()


def overhead(bench: Bench, model: str, batch_size: int) -> list[Timing]:
    digits = load_pictures("digits").train
    small = Bench(digits.pictures.fetch(torch.arange(len(digits))), digits.labels, bench.options, bench.device)
    return [
        *_overhead(bench, model, batch_size, model),
        *_overhead(small, "resnet20", batch_size, "resnet20 on digits"),
    ]


def _overhead(bench: Bench, model: str, batch_size: int, name: str) -> list[Timing]:
    ours, theirs = bench.model(model), bench.model(model)
    options: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    loader = bench.loader(batch_size, augmented=False)
    step = Step(bench.objective(ours, []), torch.optim.SGD(ours.parameters(), **options), [], loader)
    pictures, labels = bench.pictures.to(bench.device), bench.labels.to(bench.device)
    minimal = partial(
        minimal_step, theirs, torch.optim.SGD(theirs.parameters(), **options), pictures, labels, batch_size
    )
    cases = [bench.case("minimal loop", minimal), bench.case("our step", partial(step, 0, stochastic=False))]
    return measure(f"overhead: {name}, blocks of {batch_size}", cases, bench.turns, bench.device)


def scaling(bench: Bench, model: str, batch_size: int) -> list[Timing]:
    network, samples = bench.model(model), len(bench.labels)
    cases = [
        bench.case(f"{times * samples:,} samples", objective.evaluate, times * samples)
        for times in (1, 2, 4)
        for objective in [bench.objective(network, bench.loader(batch_size, times=times).blocks(0))]
    ]
    return measure(f"scaling: {model}, blocks of {batch_size}", cases, bench.turns, bench.device)


GROUPS: dict[str, Callable[[Bench, str, int], list[Timing]]] = {
    "gradient": gradient,
    "products": products,
    "data": data,
    "overhead": overhead,
    "scaling": scaling,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[128])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--only", nargs="+", choices=[*GROUPS, "memory", "limits"], default=[*GROUPS, "memory", "limits"]
    )
    parser.add_argument("--compile", action="store_true", help="compile, too (a minute or more for each model)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=2, help="processes of the DataLoader with PIL")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    console, device = Console(), find_device(options.device)
    set_up(threads=options.threads, benchmark=True, deterministic=False)
    generator = np.random.default_rng(0)
    pictures = torch.from_numpy(generator.integers(0, 256, (options.samples, 3, 32, 32), dtype=np.uint8))
    bench = Bench(pictures, torch.from_numpy(generator.integers(0, 10, options.samples)), options, device)
    timings: list[Timing] = []
    facts: dict[str, float] = {}
    for model in options.models:
        for batch_size in options.batch_sizes:
            for group in (name for name in GROUPS if name in options.only):
                found = GROUPS[group](bench, model, batch_size)
                show(found, console)
                timings += found
            block = next(iter(bench.loader(batch_size).blocks(0)))[:2]
            if "memory" in options.only:
                facts |= memory(bench.model(model), block, f"{model}, blocks of {batch_size}", console)
            if "limits" in options.only:
                facts |= limits(bench.model(model, CHANNELS_LAST), block, f"{model}, blocks of {batch_size}", console)
    console.print(machine(device), highlight=False)
    if options.json is not None:
        write(options.json, timings, facts, device)


if __name__ == "__main__":
    main()
