"""The block ahead: the same blocks, and every stream waits for what it needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from block_loading import block_loader

from fullbatch.data.augmentation import Augmentation
from fullbatch.data.images import ImageSet, TensorImages
from fullbatch.data.prefetch import one_ahead
from fullbatch.typing import Block

CPU = torch.device("cpu")


class Recorded:
    """Stands in for a tensor and for a stream, and notes what is asked of it."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    def wait_stream(self, other: "Recorded") -> None:
        self.events.append(f"{self.name} waits for {other.name}")

    def record_stream(self, stream: "Recorded") -> None:
        self.events.append(f"{self.name} is used by {stream.name}")


def made(events: list[str], count: int = 3) -> Iterator[Any]:
    for number in range(count):
        events.append(f"make {number}")
        yield Block(Recorded(f"x{number}", events), Recorded(f"y{number}", events), number)  # type: ignore[arg-type]


def use(blocks: Iterator[Block], events: list[str]) -> None:
    events.extend(f"use {block.key}" for block in blocks)


def test_without_streams_blocks_pass_as_they_come() -> None:
    events: list[str] = []
    use(one_ahead(made(events), CPU), events)
    assert events == ["make 0", "use 0", "make 1", "use 1", "make 2", "use 2"]


def test_the_next_block_is_made_before_the_present_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    side, main = Recorded("side", events), Recorded("main", events)

    @contextmanager
    def on(stream: Recorded) -> Iterator[None]:
        events.append(f"on {stream.name}")
        yield
        events.append("back")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", on)
    use(one_ahead(made(events, 2), torch.device("cuda")), events)
    assert events == [
        *("side waits for main", "on side", "make 0", "back"),
        *("main waits for side", "x0 is used by main", "y0 is used by main", "on side", "make 1", "back", "use 0"),
        *("main waits for side", "x1 is used by main", "y1 is used by main", "on side", "back", "use 1"),
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("caching", ["device", "ram", False])
def test_blocks_on_the_gpu_are_those_on_the_cpu(caching: str | bool) -> None:
    """While long products keep the main stream busy with each of them."""
    images = torch.randint(256, (2000, 3, 32, 32), dtype=torch.uint8)
    part = ImageSet(TensorImages(images), torch.arange(2000) % 3, ("a", "b", "c"))
    augmentation = Augmentation({"RandomCrop": [32, 4], "RandomHorizontalFlip": 0.5, "RandomErasing": 0.5}, 3)
    on_cpu, on_gpu = (
        block_loader(
            part, batch_size=64, augmentation=augmentation, caching=caching, pin_memory=True, device=torch.device(name)
        )
        for name in ("cpu", "cuda")
    )
    busy, found = torch.randn(2048, 2048, device="cuda"), []
    for block in on_gpu.blocks(2):
        for _ in range(10):
            busy = torch.nn.functional.normalize(busy @ busy)
        found.append(block.inputs + 0 * busy.sum())
    assert torch.allclose(torch.cat(found).cpu(), torch.cat([block.inputs for block in on_cpu.blocks(2)]))
