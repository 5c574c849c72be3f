"""How the images of a block come out of their set: as they are, or made one size by the first transforms of a step.

Images of various sizes cannot lie in one tensor until a transform has chosen their size. So whoever reads such a
image also applies the transforms up to that one, with the draws of the image's own counters (seed, step, sample):
the result is the same in whatever process and company it is read. The other transforms work on batches, on the device.
"""

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fullbatch.data.augmentation import Augmentation
from fullbatch.data.images import Images, WholeImages
from fullbatch.runtime.allocator import give_memory_back

_DEATH = "DataLoader worker"  # how PyTorch begins to say it
_NEWS = 1.0  # seconds
_TRIM = 32 << 20  # bytes of images, four times as many as floats, after which freed memory is given back

Plan: TypeAlias = Sequence[tuple[Tensor, int]]
"""What to read, block after block: ids (int64 [n]) and the step they are read for."""


class Reader(Protocol):
    """Reads images for a step."""

    def read(self, ids: Tensor, step: int) -> Tensor:
        """Return the images ``ids`` (int64 [n], on the CPU) as uint8 [n, C, H, W], or [n * copies, C, H, W]."""
        ...


@dataclass(frozen=True)
class AsTheyAre:
    """Reads images that have one size, the same in every step."""

    images: Images

    def read(self, ids: Tensor, step: int) -> Tensor:
        """Return the images."""
        return self.images.fetch(ids)


@dataclass(frozen=True)
class MadeOneSize:
    """Reads images of various sizes, one after the other, through ``transforms`` that give them one size.

    The ``copies`` of an image come one after the other, each with draws of its own.
    """

    images: WholeImages
    transforms: Augmentation
    copies: int = 1

    def read(self, ids: Tensor, step: int) -> Tensor:
        """Return the images; raise ValueError naming the one that a transform does not fit."""
        return torch.cat([part for one in ids.split(1) for part in self._copies(one, step)])

    def _copies(self, one: Tensor, step: int) -> list[Tensor]:
        index = int(one)
        image = self.images.whole(index)[None]
        try:
            return [self.transforms(image, one, step, copy) for copy in range(self.copies)]
        except ValueError as error:
            raise ValueError(f"{error} ({self.images.where(index)})") from error


def reader_of(images: Images, augmentation: Augmentation | None, copies: int = 1) -> tuple[Reader, Augmentation | None]:
    """Return what reads the images, and the transforms that are left to do.

    Only where images can be read whole, and a transform chooses their size, is anything done in reading.
    """
    parts = augmentation.parted() if augmentation is not None and isinstance(images, WholeImages) else None
    if parts is None:
        return AsTheyAre(images), augmentation
    assert isinstance(images, WholeImages)
    return MadeOneSize(images, parts[0], copies), parts[1]


class Source(Protocol):
    """Gives the images of one block after the other, uint8 [n, C, H, W]."""

    def read(self, plan: Plan) -> Iterator[Tensor]:
        """Yield the images of each entry of ``plan``."""
        ...


@dataclass(frozen=True)
class InMemory:
    """All the images as one tensor, on the device or in the main memory."""

    tensor: Tensor

    def read(self, plan: Plan) -> Iterator[Tensor]:
        """Yield the images of each entry of ``plan``."""
        for ids, _ in plan:
            yield self.tensor.index_select(0, ids.to(self.tensor.device))


class FromFiles:
    """Images that worker processes read anew each time, at most two blocks a process ahead."""

    def __init__(self, reader: Reader, num_workers: int, pin_memory: bool, persistent_workers: bool) -> None:
        self._plan, self._passed = _Plan(), 0
        self._loader: DataLoader[Tensor | Exception] = DataLoader(
            _ByPlan(reader),
            batch_size=None,
            sampler=self._plan,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers and num_workers > 0,
            generator=torch.Generator(),  # else every pass would draw from the global generator
        )

    def read(self, plan: Plan) -> Iterator[Tensor]:
        """Yield the images of each entry of ``plan``; raise OSError or ValueError as their reader does."""
        self._plan.entries = plan
        for images in delivered(self._loader):
            self._passed += images.numel()
            if self._passed > _TRIM:
                give_memory_back()
                self._passed = 0
            yield images


class _Plan(Sampler[Any]):
    def __init__(self) -> None:
        self.entries: Plan = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class _ByPlan(Dataset[Any]):
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __getitem__(self, entry: Any) -> Tensor | Exception:
        try:
            return self._reader.read(*entry)
        except (OSError, ValueError) as error:  # as a value: raised, it would come with the worker's stack trace
            return error


def delivered(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield what the processes of a loader make; raise what they return in its place, and OSError where one died."""
    entries, end = iter(loader), object()
    while True:
        try:
            with translate_worker_errors():
                entry = next(entries, end)
        except (ConnectionError, EOFError, FileNotFoundError) as error:  # it died while it handed over a tensor
            with suppress(RuntimeError):
                time.sleep(_NEWS)  # PyTorch's own report of the death comes as a signal: here, not in what follows
            raise _died(str(error) or "its connection is closed") from error
        if entry is end:
            return
        if isinstance(entry, Exception):
            raise entry
        yield entry


@contextmanager
def translate_worker_errors() -> Iterator[None]:
    """Let the death of a reading process be an ``OSError``; PyTorch raises it wherever this process is then."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(_DEATH):
            raise
        # what it interrupted may hold a temporary file, which a process forked later would remove as if it were its own
        traceback.clear_frames(error.__traceback__)
        raise _died(str(error).splitlines()[0].removeprefix(_DEATH).strip(" .")) from error


def _died(reason: str) -> OSError:
    return OSError(
        f"a process that reads images has died: {reason}; mostly because the memory was full (after a bus error, "
        "that of /dev/shm): fewer impl.threads and a smaller data.batch_size need less"
    )
