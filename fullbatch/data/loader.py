"""Blocks on the device: images in, augmented and normalized inputs out.

Which samples make up a block, their order and their augmentation are functions of (seed, step) alone. So the blocks
of a step can be requested again and come out the same.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fullbatch.data.augmentation import Augmentation
from fullbatch.data.images import Images, ImageSet, TensorImages
from fullbatch.data.prefetch import one_ahead
from fullbatch.data.reading import DirectReader, FromFiles, InMemory, Reader, Source, reader_of
from fullbatch.randomness import derive_seed, random_bits, random_integers
from fullbatch.runtime.files import format_bytes
from fullbatch.runtime.logs import progress
from fullbatch.runtime.resources import available_memory
from fullbatch.runtime.stop_requests import stop_if_interrupted
from fullbatch.typing import Block

_log = logging.getLogger(__name__)
_CPU = torch.device("cpu")
_ORDER, _REPLACEMENT, _KEYS = 0, 1, 2  # streams of the loader's seed
_DEVICE_SHARE, _RAM_SHARE = 0.25, 0.5  # of the available memory, for the cache
_CHUNK = 32 << 20  # bytes of images read at once into the cache


@dataclass(frozen=True)
class BlockFormat:
    """The inputs of a block: (image/255 - mean) / std.

    Args:
        mean: one number per channel; None means 0.
        std: one number per channel; None means 1.
        device: of inputs and labels.
        dtype: of the inputs.
        memory_format: of the inputs.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    device: torch.device = _CPU
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format


@dataclass(frozen=True)
class ReadOptions:
    """How images reach the device.

    Args:
        caching: ``device`` or ``ram`` keeps all images there as uint8, False reads them in every pass. None caches on
            the device, else in RAM, where the images take a moderate share of the free memory.
        num_workers: number of reading processes; used where images are not cached.
        pin_memory: whether images pass through page-locked memory on their way to a CUDA device.
        non_blocking: whether copies to the device are asynchronous.
        persistent_workers: whether the workers stay between passes.
        name: what log messages call the images.
    """

    caching: str | bool | None = None
    num_workers: int = 0
    pin_memory: bool = False
    non_blocking: bool = True
    persistent_workers: bool = False
    name: str = "images"


class BlockLoader:
    """Makes the blocks of each step from a set of images; see ``blocks``.

    Args:
        dataset: the labeled images.
        batch_size: samples per block; the last block holds the remainder unless ``drop_last``.
        format: normalization, device and dtype of the inputs.
        augmentation: applied to the uint8 images.
        reading: where the images are kept and who reads them.
        drop_last: whether a last block smaller than the others is left out.
        rounds: number of equally large, consecutive parts of the set; step s uses part s mod ``rounds``.
        copies: how often each sample occurs in a block; copies are adjacent and augmented independently (Maxup).
        seed: of the order of the samples and of the blocks' keys.

    Raises:
        ValueError: ``drop_last`` leaves no block, or images of various sizes cannot be cached.
    """

    def __init__(
        self,
        dataset: ImageSet,
        *,
        batch_size: int,
        format: BlockFormat = BlockFormat(),
        augmentation: Augmentation | None = None,
        reading: ReadOptions = ReadOptions(),
        drop_last: bool = False,
        rounds: int = 1,
        copies: int = 1,
        seed: int = 0,
    ) -> None:
        assert len(dataset) % rounds == 0
        self.rounds, self.size = rounds, len(dataset) // rounds
        if drop_last and self.size < batch_size:
            raise ValueError(f"data.drop_last=True: {self.size} samples do not fill one block of {batch_size}")
        self.batch_size, self.drop_last, self.seed = batch_size, drop_last, seed
        self.format, self.device = format, format.device
        self.augmentation, self.copies = augmentation, copies
        reader, self._batch_transforms = reader_of(dataset.images, augmentation, copies)
        self._pin_memory = reading.pin_memory and self.device.type == "cuda"
        self._non_blocking = reading.non_blocking
        self._labels = dataset.labels.to(self.device)
        self._shift, self._scale = (
            (torch.tensor(values, dtype=torch.float64) * 255).to(format.dtype).to(self.device).view(-1, 1, 1)
            for values in (format.mean or [0.0], format.std or [1.0])
        )
        caching = _choose_caching(reader, self.device, reading)
        self._source: Source
        if caching is False:
            self._source = FromFiles(reader, reading.num_workers, self._pin_memory, reading.persistent_workers)
        else:
            place = self.device if caching == "device" else _CPU
            self._source = InMemory(_read_all(dataset.images, place, reading.name))

    @property
    def constant(self) -> bool:
        """Whether every step has the same samples: no augmentation and one round."""
        return self.augmentation is None and self.rounds == 1

    def blocks(self, step: int, *, shuffle: bool = False, with_replacement: bool = False) -> "LoaderBlocks":
        """Return the blocks of a step: each sample of its part once, or as many samples drawn with replacement.

        Without ``shuffle`` the samples come in the order of the set; with it, in an order that depends on (seed, step).
        """
        ids = torch.arange(self.size)
        if with_replacement:
            ids = random_integers(ids, self.size, self.seed, step, _REPLACEMENT)
        elif shuffle:
            ids = torch.argsort(random_bits(ids, self.seed, step, _ORDER), stable=True)
        plan = (ids + step % self.rounds * self.size).split(self.batch_size)
        if self.drop_last and len(plan[-1]) < self.batch_size:
            plan = plan[:-1]
        return LoaderBlocks(self, step, tuple(enumerate(plan)))

    def read(self, step: int, numbered_ids: Sequence[tuple[int, Tensor]]) -> Iterator[Block]:
        """Yield one block per entry of ``numbered_ids``: its number in the step, and sample ids int64 [n]."""
        return one_ahead(self._make_blocks(step, numbered_ids), self.device)

    def _make_blocks(self, step: int, numbered_ids: Sequence[tuple[int, Tensor]]) -> Iterator[Block]:
        plan = [(ids, step) for _, ids in numbered_ids]
        for (number, ids), images in zip(numbered_ids, self._source.read(plan), strict=True):
            device_ids = ids.to(self.device, non_blocking=self._non_blocking)
            inputs = self._prepare(images, device_ids, step)
            labels = self._labels.index_select(0, device_ids)
            if self.copies > 1:
                labels = labels.repeat_interleave(self.copies)
            yield Block(inputs, labels, derive_seed(self.seed, _KEYS, step, number))

    def _prepare(self, images: Tensor, ids: Tensor, step: int) -> Tensor:
        """Return augmented and normalized inputs on the device."""
        if self._pin_memory and images.device.type == "cpu":
            images = images.pin_memory()
        images = self._augment(images.to(self.device, non_blocking=self._non_blocking), ids, step)
        inputs = images.to(dtype=self.format.dtype, memory_format=self.format.memory_format)
        return inputs.sub_(self._shift).div_(self._scale)

    def _augment(self, images: Tensor, ids: Tensor, step: int) -> Tensor:
        """Return uint8 [n * copies, C, H, W], the copies of an image adjacent."""
        copies_read = len(images) // len(ids)  # copies that differ already because their reader augmented them
        transform = self._batch_transforms
        if transform is None:
            return images.repeat_interleave(self.copies // copies_read, 0) if copies_read < self.copies else images
        if self.copies == 1:
            return transform(images, ids, step)
        copies = [transform(images[copy % copies_read :: copies_read], ids, step, copy) for copy in range(self.copies)]
        return torch.stack(copies, dim=1).flatten(0, 1)


@dataclass(frozen=True)
class LoaderBlocks:
    """The blocks of a step; they can be counted, sliced and read repeatedly. Reading yields ``Block``."""

    loader: BlockLoader
    step: int
    numbered_ids: tuple[tuple[int, Tensor], ...]

    @property
    def sizes(self) -> list[int]:
        """The number of samples of each block."""
        return [len(ids) for _, ids in self.numbered_ids]

    def __len__(self) -> int:
        return len(self.numbered_ids)

    def __getitem__(self, part: slice) -> "LoaderBlocks":
        return replace(self, numbered_ids=self.numbered_ids[part])

    def __iter__(self) -> Iterator[Block]:
        return self.loader.read(self.step, self.numbered_ids)


def _read_all(images: Images, device: torch.device, name: str) -> Tensor:
    """Return all images as one tensor on ``device``."""
    if isinstance(images, TensorImages):
        return images.tensor.to(device)
    first = images.fetch(torch.arange(1))
    result = torch.empty(len(images), *first.shape[1:], dtype=torch.uint8, device=device)
    with progress(f"caching {name}", len(images)) as advance:
        for ids in torch.arange(len(images)).split(max(1, _CHUNK // first.numel())):
            stop_if_interrupted(f"stopped while caching {name}")
            result[ids[0] : ids[-1] + 1] = images.fetch(ids)
            advance(len(ids))
    return result


def _choose_caching(reader: Reader, device: torch.device, reading: ReadOptions) -> str | bool:
    """Return where the images are kept: ``device``, ``ram`` or, for nowhere, False."""
    if not isinstance(reader, DirectReader):
        if reading.caching:
            raise ValueError(
                f"data.caching={reading.caching}: images of various sizes are cropped anew in every step and cannot "
                "be cached; data.resize_on_read=True resizes them first, data.caching=False reads them in every step"
            )
        return False
    if reading.caching is not None:
        return reading.caching
    images = reader.images
    size = images.fetch(torch.arange(1)).numel() * len(images)
    free = {"ram": available_memory()}
    if device.type == "cuda":
        free = {"device": torch.cuda.mem_get_info(device)[0], **free}
    chosen: str | bool = False
    if size <= _DEVICE_SHARE * free.get("device", 0):
        chosen = "device"
    elif isinstance(images, TensorImages) or size <= _RAM_SHARE * free["ram"]:
        chosen = "device" if device.type in ("cpu", "mps") else "ram"
    if chosen is False:
        available = ", ".join(f"{format_bytes(amount)} of {place}" for place, amount in free.items())
        how = f"reading %s %s in every step (%s; free: {available})"
    else:
        how = f"caching %s %s on {device if chosen == 'device' else _CPU} (%s)"
    _log.info(how, f"{len(images):,}", reading.name, format_bytes(size))
    return chosen
