"""The one generator that moves samples to the device: images in, augmented and normalised blocks out.

Which samples make a block, in which order, and what augmentation does to them is a function of (seed, step) alone, so
blocks of a step can be asked for again and come out the same.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fullbatch.data.augmentation import Augmentation
from fullbatch.data.images import Images, ImageSet, TensorImages
from fullbatch.data.prefetch import one_ahead
from fullbatch.data.reading import AsTheyAre, FromFiles, InMemory, Reader, Source, reader_of
from fullbatch.randomness import derive_seed, random_bits, random_integers
from fullbatch.runtime.logs import progress
from fullbatch.runtime.stop_requests import stop_if_interrupted
from fullbatch.typing import Block

_log = logging.getLogger(__name__)
_ORDER, _REPLACEMENT, _KEYS = 0, 1, 2  # streams of the loader's seed
_DEVICE_SHARE, _RAM_SHARE = 0.25, 0.5  # of the free memory that images may take unasked; activations need the rest
_UNKNOWN_RAM = 4 << 30  # bytes to assume where the system does not tell
_GIB = 1 << 30
_CHUNK = 32 << 20  # bytes of images read at once on their way into the memory


class BlockLoader:
    """Makes blocks of a set of images; see ``blocks``.

    Args:
        dataset: the labelled images.
        batch_size: samples of a block; the last one holds what is left, unless ``drop_last``.
        mean: of each channel, subtracted from value/255; None: images are value/255.
        std: of each channel, divided by.
        augmentation: changes the uint8 images first.
        device: where blocks lie.
        dtype: of the inputs.
        memory_format: of the inputs.
        caching: ``device`` or ``ram`` keeps all images there as uint8; False reads them anew in every pass; None
            takes the first of the three that is at ease in the free memory.
        num_workers: processes that read, where images are not cached.
        pin_memory: copy images to page-locked memory on their way to a CUDA device.
        non_blocking: do not wait for copies to the device.
        persistent_workers: keep the workers between passes.
        drop_last: leave out a last block that is smaller than the others.
        rounds: parts of the set, one after the other and equally large, that steps take turns with: step s has the
            samples of part s mod rounds.
        copies: how often each sample comes, one copy after the other, each augmented by draws of its own (Maxup).
        seed: of the order and of the blocks' keys.

    Raises:
        ValueError: drop_last leaves no block.
    """

    def __init__(
        self,
        dataset: ImageSet,
        *,
        batch_size: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augmentation: Augmentation | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        caching: str | bool | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        non_blocking: bool = True,
        persistent_workers: bool = False,
        drop_last: bool = False,
        rounds: int = 1,
        copies: int = 1,
        seed: int = 0,
    ) -> None:
        assert len(dataset) % rounds == 0
        self.rounds, self.size = rounds, len(dataset) // rounds
        if drop_last and self.size < batch_size:
            raise ValueError(f"data.drop_last=True: leaves nothing of {self.size} samples in blocks of {batch_size}")
        self.batch_size, self.drop_last, self.seed = batch_size, drop_last, seed
        self.device, self.dtype, self.memory_format = device or torch.device("cpu"), dtype, memory_format
        self.augmentation, self.copies = augmentation, copies
        reader, self._rest = reader_of(dataset.images, augmentation, copies)
        self._pin_memory, self._non_blocking = pin_memory and self.device.type == "cuda", non_blocking
        self._labels = dataset.labels.to(self.device)
        self._shift, self._scale = self._normalisation(mean, std)
        where = _where(caching, reader, self.device)
        self._source: Source
        if where is False:
            self._source = FromFiles(reader, num_workers, self._pin_memory, persistent_workers)
        else:
            self._source = InMemory(_read_all(dataset.images, self.device if where == "device" else None))

    @property
    def constant(self) -> bool:
        """Whether the samples are the same in every step."""
        return self.augmentation is None and self.rounds == 1

    def blocks(self, step: int, *, shuffle: bool = False, with_replacement: bool = False) -> "BlockSequence":
        """Return the blocks of a step: every sample of its part once, or as many drawn with replacement.

        Without ``shuffle`` samples come in the order of the set, with it in an order that depends on (seed, step).
        """
        ids = torch.arange(self.size)
        if with_replacement:
            ids = random_integers(ids, self.size, self.seed, step, _REPLACEMENT)
        elif shuffle:
            ids = torch.argsort(random_bits(ids, self.seed, step, _ORDER), stable=True)
        plan = (ids + step % self.rounds * self.size).split(self.batch_size)
        if self.drop_last and len(plan[-1]) < self.batch_size:
            plan = plan[:-1]
        return BlockSequence(self, step, tuple(enumerate(plan)))

    def read(self, step: int, numbered_ids: Sequence[tuple[int, Tensor]]) -> Iterator[Block]:
        """Yield the blocks of the samples in ``numbered_ids``: a block's number in its step, and ids int64 [n]."""
        return one_ahead(self._made(step, numbered_ids), self.device)

    def _made(self, step: int, numbered_ids: Sequence[tuple[int, Tensor]]) -> Iterator[Block]:
        plan = [(ids, step) for _, ids in numbered_ids]
        for (number, ids), images in zip(numbered_ids, self._source.read(plan), strict=True):
            on_device = ids.to(self.device, non_blocking=self._non_blocking)
            inputs = self._prepare(images, on_device, step)
            labels = self._labels.index_select(0, on_device)
            if self.copies > 1:
                labels = labels.repeat_interleave(self.copies)
            yield Block(inputs, labels, derive_seed(self.seed, _KEYS, step, number))

    def _prepare(self, images: Tensor, ids: Tensor, step: int) -> Tensor:
        if self._pin_memory and images.device.type == "cpu":
            images = images.pin_memory()
        images = images.to(self.device, non_blocking=self._non_blocking)
        images = self._augmented(images, ids, step)
        inputs = images.to(dtype=self.dtype, memory_format=self.memory_format)
        return inputs.sub_(self._shift).div_(self._scale)

    def _augmented(self, images: Tensor, ids: Tensor, step: int) -> Tensor:
        """Return the images, or all the copies of each one after the other, augmented."""
        read = len(images) // len(ids)  # copies that were made in reading
        if self._rest is None:
            return images.repeat_interleave(self.copies // read, 0) if read < self.copies else images
        if self.copies == 1:
            return self._rest(images, ids, step)
        copies = [self._rest(images[copy % read :: read], ids, step, copy) for copy in range(self.copies)]
        return torch.stack(copies, dim=1).flatten(0, 1)

    def _normalisation(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[Tensor, Tensor]:
        """Return the numbers of (value - 255 mean) / (255 std), [C, 1, 1] each."""
        shift, scale = (torch.tensor(x, dtype=torch.float64) * 255 for x in (mean or [0.0], std or [1.0]))
        shift, scale = (x.to(self.dtype).to(self.device).view(-1, 1, 1) for x in (shift, scale))
        return shift, scale


@dataclass(frozen=True)
class BlockSequence:
    """Blocks of a step that can be counted, cut and read again; reading yields ``Block``."""

    loader: BlockLoader
    step: int
    numbered_ids: tuple[tuple[int, Tensor], ...]

    @property
    def sizes(self) -> list[int]:
        """The number of samples of each block."""
        return [len(ids) for _, ids in self.numbered_ids]

    def __len__(self) -> int:
        return len(self.numbered_ids)

    def __getitem__(self, part: slice) -> "BlockSequence":
        return replace(self, numbered_ids=self.numbered_ids[part])

    def __iter__(self) -> Iterator[Block]:
        return self.loader.read(self.step, self.numbered_ids)


def _read_all(images: Images, device: torch.device | None) -> Tensor:
    """Return all the images as one tensor, on ``device`` or, for None, in the main memory."""
    if isinstance(images, TensorImages):
        return images.tensor if device is None else images.tensor.to(device)
    first = images.fetch(torch.arange(1))
    result = torch.empty(len(images), *first.shape[1:], dtype=torch.uint8, device=device)
    with progress("images into the memory", len(images)) as advance:
        for ids in torch.arange(len(images)).split(max(1, _CHUNK // first.numel())):
            stop_if_interrupted("stopped while reading the images into the memory")
            result[ids[0] : ids[-1] + 1] = images.fetch(ids)
            advance(len(ids))
    return result


def _where(caching: str | bool | None, reader: Reader, device: torch.device) -> str | bool:
    """Return where the images are kept, False for nowhere."""
    if isinstance(reader, AsTheyAre):
        return _choose_caching(reader.images, device) if caching is None else caching
    if caching:
        raise ValueError(
            f"data.caching={caching}: the transforms choose anew in each step what they keep of these images of "
            "various sizes; data.resize_on_read=True gives them one size first, data.caching=False reads them anew"
        )
    return False


def _choose_caching(images: Images, device: torch.device) -> str | bool:
    """Choose where to keep the images by what memory is free now, and say so."""
    size = images.fetch(torch.arange(1)).numel() * len(images)
    free = {"ram": _free_ram()}
    if device.type == "cuda":
        free = {"device": torch.cuda.mem_get_info(device)[0], **free}
    if size <= _DEVICE_SHARE * free.get("device", 0):
        chosen: str | bool = "device"
    elif isinstance(images, TensorImages) or size <= _RAM_SHARE * free["ram"]:
        chosen = "device" if device.type in ("cpu", "mps") else "ram"
    else:
        chosen = False
    measured = ", ".join(f"{place} {amount / _GIB:.2f} GiB" for place, amount in free.items())
    _log.info(
        "data.caching: %s for %s images of %.2f GiB together (free: %s)",
        chosen,
        f"{len(images):,}",
        size / _GIB,
        measured,
    )
    return chosen


def _free_ram() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return _UNKNOWN_RAM
