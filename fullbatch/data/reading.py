"""How the images of a block are read: unchanged, or through the first transforms, which give them one size.

Images of various sizes do not fit into one tensor until a transform has chosen their size. So the reader of such an
image also applies the transforms up to that one, with the draws of the image's own counters (seed, step, sample). The
result does not depend on the process that reads it or on the other images of the block. The remaining transforms run on
batches, on the device.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fullbatch.data.augmentation import Augmentation
from fullbatch.data.images import Images, WholeImages
from fullbatch.runtime.allocator import give_memory_back

_WORKER_DIED = "DataLoader worker"  # start of PyTorch's message
_SIGNAL_DELAY = 1.0  # seconds
_TRIM = 32 << 20  # bytes of images, four times as many as floats, after which freed memory is given back

Plan: TypeAlias = Sequence[tuple[Tensor, int]]
"""What to read, block by block: sample ids (int64 [n]) and the step they are read for."""


class Reader(Protocol):
    """Reads images for a step."""

    def read(self, ids: Tensor, step: int) -> Tensor:
        """Return the images ``ids`` (int64 [n], on the CPU) as uint8 [n, C, H, W] or [n * copies, C, H, W]."""
        ...


@dataclass(frozen=True)
class DirectReader:
    """Reads images of one size, the same in every step."""

    images: Images

    def read(self, ids: Tensor, step: int) -> Tensor:
        """Return the images."""
        return self.images.fetch(ids)


@dataclass(frozen=True)
class TransformingReader:
    """Reads images of various sizes one by one through ``transforms``, which give them one size.

    The ``copies`` of an image are adjacent, each with draws of its own.
    """

    images: WholeImages
    transforms: Augmentation
    copies: int = 1

    def read(self, ids: Tensor, step: int) -> Tensor:
        """Return the transformed images; ``ValueError`` names an image that a transform does not fit."""
        results = []
        for one in ids.split(1):
            image = self.images.whole(int(one))[None]
            try:
                results += [self.transforms(image, one, step, copy) for copy in range(self.copies)]
            except ValueError as error:
                raise ValueError(f"{error} ({self.images.where(int(one))})") from error
        return torch.cat(results)


def reader_of(images: Images, augmentation: Augmentation | None, copies: int = 1) -> tuple[Reader, Augmentation | None]:
    """Return the reader of the images, and the transforms that remain for batches.

    A reader transforms only where images can be read whole and a transform chooses their size.
    """
    parts = augmentation.split() if augmentation is not None and isinstance(images, WholeImages) else None
    if parts is None:
        return DirectReader(images), augmentation
    assert isinstance(images, WholeImages)
    return TransformingReader(images, parts[0], copies), parts[1]


class Source(Protocol):
    """Yields the images of one block after the other, uint8 [n, C, H, W]."""

    def read(self, plan: Plan) -> Iterator[Tensor]:
        """Yield the images of each entry of ``plan``."""
        ...


@dataclass(frozen=True)
class InMemory:
    """All images as one tensor, on the device or in main memory."""

    tensor: Tensor

    def read(self, plan: Plan) -> Iterator[Tensor]:
        """Yield the images of each entry of ``plan``."""
        for ids, _ in plan:
            yield self.tensor.index_select(0, ids.to(self.tensor.device))


class FromFiles:
    """Images that worker processes read in every pass, each at most two blocks ahead."""

    def __init__(self, reader: Reader, num_workers: int, pin_memory: bool, persistent_workers: bool) -> None:
        self._plan, self._bytes_read = _Plan(), 0
        self._loader: DataLoader[Tensor | Exception] = DataLoader(
            WorkerTask(reader.read),
            batch_size=None,
            sampler=self._plan,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers and num_workers > 0,
            generator=torch.Generator(),  # else every pass would draw from the global generator
        )

    def read(self, plan: Plan) -> Iterator[Tensor]:
        """Yield the images of each entry of ``plan``; raise the reader's ``OSError`` or ``ValueError``."""
        self._plan.entries = plan
        for images in worker_results(self._loader):
            self._bytes_read += images.numel()
            if self._bytes_read > _TRIM:
                give_memory_back()
                self._bytes_read = 0
            yield images


class _Plan(Sampler[Any]):
    def __init__(self) -> None:
        self.entries: Plan = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class WorkerTask(Dataset[Any]):
    """The function that the workers of a ``DataLoader`` call with each entry of its sampler as arguments.

    Its ``OSError`` or ``ValueError`` is returned: raised in the worker, it would carry the worker's stack trace.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function

    def __getitem__(self, entry: Any) -> Tensor | Exception:
        try:
            return self._function(*entry)
        except (OSError, ValueError) as error:
            return error


def worker_results(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the results of a loader's workers; raise the errors among them, and ``OSError`` where a worker died."""
    entries, end = iter(loader), object()
    try:
        while True:
            try:
                with translate_worker_errors():
                    entry = next(entries, end)
            except (ConnectionError, EOFError, FileNotFoundError) as error:  # it died while it sent a tensor
                with suppress(RuntimeError):
                    time.sleep(_SIGNAL_DELAY)  # PyTorch reports the death by a signal, too: catch its error here
                raise _worker_died(str(error) or "its connection is closed") from error
            if entry is end:
                return
            if isinstance(entry, Exception):
                raise entry
            yield entry
    finally:
        del entries  # ends the workers at once: collected later, with the traceback, it waits 5 s for each of them


@contextmanager
def translate_worker_errors() -> Iterator[None]:
    """Turn PyTorch's report of a worker's death into an ``OSError``; PyTorch raises it at any point of the program."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(_WORKER_DIED):
            raise
        # The interrupted frames may hold a temporary file, which a process forked later would remove as its own.
        traceback.clear_frames(error.__traceback__)
        raise _worker_died(str(error).splitlines()[0].removeprefix(_WORKER_DIED).strip(" .")) from error


def _worker_died(reason: str) -> OSError:
    return OSError(
        f"a process that reads images has died: {reason}. Most often the memory was full (after a bus error, that of "
        "/dev/shm): reduce impl.threads or data.batch_size"
    )
