"""Sets of labeled images, which all data sources return, and the computations that all sources share.

Images are uint8 [n, C, H, W] until a block is normalized on the device. The id of a sample is its position in its set.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fullbatch.randomness import random_bits
from fullbatch.runtime.stop_requests import stop_if_interrupted

_WITHIN, _ACROSS, _ORDER = (0x5375_6273_6574_0000 + n for n in (1, 2, 3))  # streams of the subset's seed
_CHUNK = 1024  # images read at once for statistics


class Images(Protocol):
    """Images of one size, read by position."""

    def __len__(self) -> int: ...

    def fetch(self, ids: Tensor) -> Tensor:
        """Return the images ``ids`` (int64 [n], on the CPU) as uint8 [n, C, H, W] on the CPU."""
        ...

    def checksum(self) -> str:
        """Return a string that is equal only for equal images in the same order."""
        ...


@runtime_checkable
class WholeImages(Images, Protocol):
    """Images of various sizes; ``fetch`` returns them resized and cropped at the center to one size."""

    def whole(self, index: int) -> Tensor:
        """Return one image in its own size, uint8 [C, H, W] on the CPU."""
        ...

    def where(self, index: int) -> object:
        """Return the name of an image for messages."""
        ...


@dataclass(frozen=True)
class TensorImages:
    """Images held in memory: ``tensor`` is uint8 [N, C, H, W] on the CPU."""

    tensor: Tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def fetch(self, ids: Tensor) -> Tensor:
        """Return copies of the images ``ids`` (int64 [n])."""
        return self.tensor.index_select(0, ids)

    def checksum(self) -> str:
        """Return BLAKE2b over shape and bytes."""
        state = hashlib.blake2b(repr(tuple(self.tensor.shape)).encode(), digest_size=16)
        state.update(self.tensor.contiguous().numpy())
        return state.hexdigest()


@dataclass(frozen=True)
class ImageSet:
    """Labeled images; ``labels`` (int64 [N] on the CPU) are indices into ``classes``."""

    images: Images
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.images) == len(self.labels), "one label for each image"
        assert self.labels.dtype == torch.int64

    def __len__(self) -> int:
        return len(self.labels)

    def checksum(self) -> str:
        """Return a string that is equal only for equal images and labels in the same order."""
        state = hashlib.blake2b(self.images.checksum().encode(), digest_size=16)
        state.update(self.labels.contiguous().numpy())
        return state.hexdigest()


@dataclass(frozen=True)
class ImageData:
    """A training and a validation set of square images, ``channels`` x ``pixels`` x ``pixels``.

    ``mean`` and ``std`` have one entry per channel, of image/255.
    """

    train: ImageSet
    valid: ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int
    pixels: int

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        return self.train.classes


@dataclass(frozen=True)
class ImageRequest:
    """What the settings ``data.*`` request from a data source.

    Args:
        path: folder of the files.
        size: number of training images to use; None means all.
        valid_size: number of validation images to use; None means all.
        subset_seed: seed of class-balanced subsets, and of the order where files are ordered by class. CIFAR takes the
            first images.
        channels: 1 (gray) or 3 (color); None takes those of the images.
        classes: number of classes; None takes those of the data set.
        pixels: side of the square images; None takes that of the images.
        mean: one value per channel, in the range 0 to 1; None computes mean and std from the training images used.
        std: one value per channel; None computes it.
        download: whether missing files may be downloaded.
        mirrors: further places of the official archives: addresses or paths, of a folder or of the archive.
        resize_on_read: whether image files are resized and cropped to ``pixels`` before any transform; None means
            False for ``ImageNet``, True elsewhere.
    """

    path: str | None = None
    size: int | None = None
    valid_size: int | None = None
    subset_seed: int = 0
    channels: int | None = None
    classes: int | None = None
    pixels: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    download: bool = True
    mirrors: Sequence[str] = ()
    resize_on_read: bool | None = None


def check_setting(key: str, given: int | None, actual: int, name: str) -> None:
    """Raise ``ValueError`` where the setting ``data.<key>`` contradicts the data set ``name``."""
    if given is not None and given != actual:
        raise ValueError(f"data.{key}={given}: {name} has {key}={actual}; leave data.{key} blank or set it to {actual}")


def choose_samples(labels: Tensor, size: int | None, key: str, seed: int | None) -> Tensor:
    """Return the ascending ids (int64) of the samples to use.

    Args:
        labels: int64 [N], the labels of the whole set.
        size: number of samples to use; None means all.
        key: ``size`` or ``valid_size``, the setting that holds ``size``.
        seed: of a class-balanced choice; None takes the first samples.

    Raises:
        ValueError: the set is smaller than ``size``, or ``size`` is below 1.
    """
    total = len(labels)
    if size is None:
        return torch.arange(total)
    if not 1 <= size <= total:
        noun = "validation" if key == "valid_size" else "training"
        raise ValueError(f"data.{key}={size}: the {noun} set has {total} images; choose a number from 1 to {total}")
    return torch.arange(size) if seed is None else balanced_subset(labels, size, seed)


def balanced_subset(labels: Tensor, size: int, seed: int) -> Tensor:
    """Return the ascending ids (int64) of ``size`` samples, equally many of each class.

    The classes take turns, each with its next sample in an order drawn with ``seed``, until there are ``size`` samples.
    So counts differ by at most 1 unless a class runs out, and a smaller subset is part of a larger one.
    """
    total = len(labels)
    ids = torch.arange(total)
    order = torch.argsort(random_bits(ids, seed, _WITHIN), stable=True)
    order = order[torch.argsort(labels[order], stable=True)]  # class by class, shuffled inside each
    counts = torch.bincount(labels)
    starts = torch.cumsum(counts, 0) - counts
    turn = ids - starts[labels[order]]
    first_class = torch.argsort(torch.argsort(random_bits(torch.arange(len(counts)), seed, _ACROSS)))
    priority = turn * len(counts) + first_class[labels[order]]
    return order[torch.argsort(priority)[:size]].sort().values


def shuffle_ids(ids: Tensor, seed: int) -> Tensor:
    """Return the ids (int64) in an order drawn with ``seed``."""
    return ids[torch.argsort(random_bits(ids, seed, _ORDER), stable=True)]


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and population standard deviation of each channel of image/255, exact up to the last rounding.

    They are computed from one integer histogram per channel, so they do not depend on the order of summation.
    """
    histograms = torch.zeros(0, 256, dtype=torch.int64)
    for ids in torch.arange(len(images)).split(_CHUNK):
        stop_if_interrupted("stopped while computing the mean and std of the images")
        values = images.fetch(ids).transpose(0, 1).flatten(1)
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in values])
        histograms = counts if len(histograms) == 0 else histograms + counts
    mean, std = [], []
    for histogram in histograms.tolist():
        count = sum(histogram)
        first = sum(value * times for value, times in enumerate(histogram))
        second = sum(value * value * times for value, times in enumerate(histogram))
        mean.append(first / (255 * count))
        std.append(math.sqrt((count * second - first * first) / (255 * count) ** 2))
    return tuple(mean), tuple(std)


def normalization(
    request: ImageRequest, computed: tuple[tuple[float, ...], tuple[float, ...]] | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std to use: those requested, otherwise those ``computed`` from the training images.

    A blank ``data.mean`` makes both blank, since a std belongs to its mean.

    Raises:
        ValueError: the number of values is not ``channels``, or a std is not positive.
    """
    mean, std = request.mean, request.std
    if computed is not None:
        mean, std = computed if mean is None else (mean, computed[1] if std is None else std)
    assert mean is not None
    assert std is not None
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"data.{key}: {len(values)} values, but the images have {channels} channels")
    if min(std) <= 0:
        raise ValueError(f"data.std={list(std)}: must be positive (a constant channel needs an explicit data.std)")
    return tuple(map(float, mean)), tuple(map(float, std))


def needs_statistics(request: ImageRequest) -> bool:
    """Return whether mean or std must be computed from the training images."""
    return request.mean is None or request.std is None


def image_data(train: ImageSet, valid: ImageSet, request: ImageRequest, channels: int, pixels: int) -> ImageData:
    """Return the two sets with the mean and std requested or computed."""
    computed = channel_statistics(train.images) if needs_statistics(request) else None
    mean, std = normalization(request, computed, channels)
    return ImageData(train, valid, mean, std, channels, pixels)
