"""Time of whole steps, of the data path, and of a pass over more and more data."""

from functools import partial
from typing import Any

import torch
from baseline import MEAN, STD, pil_loader
from bench import Bench
from timing import Timing, Title, measure
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.data.dataset import load_images
from fullbatch.training.state import TrainState
from fullbatch.training.step import Step

DIGITS = "resnet20 on digits"


def data(bench: Bench, _: str, batch_size: int) -> list[Timing]:
    """Time augmented, normalized blocks from PIL workers and from the memory of the device."""
    workers = bench.options.workers
    images = pil_loader(len(bench.labels), batch_size, workers)
    blocks = bench.loader(batch_size).blocks(0)

    def read() -> None:
        for inputs, labels in images:
            inputs.to(bench.device), labels.to(bench.device)

    cases = [bench.case(f"PIL, {workers} workers", read)]
    cases.append(bench.case("on the device", lambda: sum(len(block.labels) for block in blocks)))
    return measure(Title("data", "", batch_size), cases, bench.turns, bench.device)


def minimal_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, size: int) -> None:
    """Take a step written as short as possible: without augmentation, recording only the loss."""
    optimizer.zero_grad()
    total = torch.zeros((), device=images.device)
    for part, targets in zip(images.split(size), labels.split(size), strict=True):
        loss = F.cross_entropy(model((part.float() - 255 * MEAN) / (255 * STD)), targets, reduction="sum") / len(labels)
        loss.backward()
        total += loss.detach()
    optimizer.step()
    total.item()


def overhead(bench: Bench, model: str, batch_size: int, name: str = "") -> list[Timing]:
    """Time our step and the minimal one with the same settings."""
    ours, theirs = bench.model(model), bench.model(model)
    options: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    loader = bench.loader(batch_size, augmented=False)
    state = TrainState(ours, torch.optim.SGD(ours.parameters(), **options))
    step = Step(state, bench.objective(ours, []), loader)
    optimizer = torch.optim.SGD(theirs.parameters(), **options)
    images, labels = bench.images.to(bench.device), bench.labels.to(bench.device)
    minimal = partial(minimal_step, theirs, optimizer, images, labels, batch_size)
    cases = [bench.case("minimal loop", minimal), bench.case("our step", partial(step, 0, stochastic=False))]
    return measure(Title("overhead", name or model, batch_size), cases, bench.turns, bench.device)


def digits(bench: Bench, _: str, batch_size: int) -> list[Timing]:
    """Time them for a model so small that every call matters."""
    train = load_images("digits").train
    images = train.images.fetch(torch.arange(len(train)))
    small = Bench(bench.options, bench.device, (images, train.labels))
    small.turns = bench.options.many_turns
    return overhead(small, "resnet20", batch_size, DIGITS)


def scaling(bench: Bench, model: str, batch_size: int) -> list[Timing]:
    """Time N, 2N and 4N samples; the time per sample should not depend on N."""
    network, smallest = bench.model(model), max(len(bench.labels) // 4, batch_size)
    cases = [
        bench.case(f"{samples:,} samples", objective.evaluate, samples)
        for samples in (smallest, 2 * smallest, 4 * smallest)
        for objective in [bench.objective(network, bench.loader(batch_size, samples=samples).blocks(0))]
    ]
    return measure(Title("scaling", model, batch_size), cases, bench.options.short_turns, bench.device)
