"""Whole steps, the data path alone, and how the time of a pass grows with the data."""

from functools import partial
from typing import Any

import torch
from baseline import MEAN, STD, pil_loader
from bench import Bench
from timing import Timing, Title, measure
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.data.datasets import load_pictures
from fullbatch.training.steps import Step

DIGITS = "resnet20 on digits"


def data(bench: Bench, _: str, batch_size: int) -> list[Timing]:
    """Augmented, normalized blocks from PIL workers, and from the memory of the device."""
    workers = bench.options.workers
    pictures = pil_loader(len(bench.labels), batch_size, workers)
    blocks = bench.loader(batch_size).blocks(0)

    def read() -> None:
        for inputs, labels in pictures:
            inputs.to(bench.device), labels.to(bench.device)

    cases = [bench.case(f"PIL, {workers} workers", read)]
    cases.append(bench.case("on the device", lambda: sum(len(block.labels) for block in blocks)))
    return measure(Title("data", "", batch_size), cases, bench.turns, bench.device)


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


def overhead(bench: Bench, model: str, batch_size: int, name: str = "") -> list[Timing]:
    """A step of ours beside the minimal one, at equal settings."""
    ours, theirs = bench.model(model), bench.model(model)
    options: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    loader = bench.loader(batch_size, augmented=False)
    step = Step(bench.objective(ours, []), torch.optim.SGD(ours.parameters(), **options), [], loader)
    optimizer = torch.optim.SGD(theirs.parameters(), **options)
    pictures, labels = bench.pictures.to(bench.device), bench.labels.to(bench.device)
    minimal = partial(minimal_step, theirs, optimizer, pictures, labels, batch_size)
    cases = [bench.case("minimal loop", minimal), bench.case("our step", partial(step, 0, stochastic=False))]
    return measure(Title("overhead", name or model, batch_size), cases, bench.turns, bench.device)


def digits(bench: Bench, _: str, batch_size: int) -> list[Timing]:
    """The same for a model so small that every call counts."""
    train = load_pictures("digits").train
    pictures = train.pictures.fetch(torch.arange(len(train)))
    small = Bench(bench.options, bench.device, (pictures, train.labels))
    small.turns = bench.options.many_turns
    return overhead(small, "resnet20", batch_size, DIGITS)


def scaling(bench: Bench, model: str, batch_size: int) -> list[Timing]:
    """N, 2N and 4N samples; the time of each should not depend on N."""
    network, smallest = bench.model(model), max(len(bench.labels) // 4, batch_size)
    cases = [
        bench.case(f"{samples:,} samples", objective.evaluate, samples)
        for samples in (smallest, 2 * smallest, 4 * smallest)
        for objective in [bench.objective(network, bench.loader(batch_size, samples=samples).blocks(0))]
    ]
    return measure(Title("scaling", model, batch_size), cases, bench.options.short_turns, bench.device)
