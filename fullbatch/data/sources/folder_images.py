"""Images decoded from files on demand, resized or in their own size."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fullbatch.data.images import (
    ImageData,
    ImageRequest,
    ImageSet,
    channel_statistics,
    needs_statistics,
    normalization,
)
from fullbatch.data.sources import folder_cache
from fullbatch.data.sources.folder_cache import Facts
from fullbatch.data.sources.image_files import (
    MAY_BE_DEEP,
    image_size,
    read_image,
    read_whole_image,
    significant_bits,
)
from fullbatch.data.sources.listings import Listing, Splits

_log = logging.getLogger(__name__)
_THREADS = min(8, os.cpu_count() or 1)
_WORTH_A_THREAD = 8192  # bytes per file: for smaller ones Python's lock costs more than decoding (2x slower at 1 KB)


@dataclass(frozen=True)
class FolderImages:
    """Images decoded from files on demand, as ``channels`` x ``pixels`` x ``pixels``; ``bits`` as in ``read_image``."""

    listing: Listing
    channels: int
    pixels: int
    bits: int | None = None

    def __len__(self) -> int:
        return len(self.listing)

    def fetch(self, ids: Tensor) -> Tensor:
        """Return the images ``ids``; ``OSError`` names a file that cannot be read."""
        chosen = ids.tolist()
        result = np.empty((len(chosen), self.channels, self.pixels, self.pixels), dtype=np.uint8)

        def decode(row: int) -> None:
            result[row] = read_image(self.listing.path(chosen[row]), self.channels, self.pixels, self.bits)

        size = int(self.listing.stamps[chosen, 0].sum())
        if size < _WORTH_A_THREAD * len(chosen) or torch.utils.data.get_worker_info() is not None:
            for row in range(len(chosen)):
                decode(row)
        else:
            with ThreadPoolExecutor(_THREADS) as threads:
                list(threads.map(decode, range(len(chosen))))
        return torch.from_numpy(result)

    def checksum(self) -> str:
        """Return a hash of the shape and the files' names and sizes; reading the files could take hours."""
        return self._checksum(self.pixels)

    def _checksum(self, shape: int | str) -> str:
        sizes = self.listing.stamps[:, 0].tolist()
        depth = [] if self.bits in (None, 16) else [self.bits]
        return folder_cache.fingerprint(self.listing.files, sizes, self.channels, shape, *depth)


class WholeFolderImages(FolderImages):
    """``FolderImages`` that transforms may read in their own size, see ``WholeImages``."""

    def whole(self, index: int) -> Tensor:
        """Return one image in its own size, uint8 [C, H, W]; ``OSError`` names a file that cannot be read."""
        return torch.from_numpy(read_whole_image(self.where(index), self.channels, self.bits))

    def where(self, index: int) -> Path:
        """Return the file of an image."""
        return self.listing.path(index)

    def checksum(self) -> str:
        """Return a hash of the files' names and sizes."""
        return self._checksum(f"whole, or {self.pixels}")


def images_of(
    listings: Splits, chosen: Splits, request: ImageRequest, scan: Callable[[], Facts] | None = None
) -> ImageData:
    """Return the listed images, decoded on demand.

    With ``resize_on_read=False``, transforms that choose the size see the images in their own size.

    Args:
        listings: all files for training and for validation, which determine the range of 16-bit images.
        chosen: those of them to use.
        request: the settings.
        scan: reads channels and pixels from the files, where the request leaves them blank. The results are kept in
            the user's cache folder until the files change.
    """
    deep = [listing.path(index) for listing in listings for index in listing.with_suffix(MAY_BE_DEEP)]
    if deep or request.channels is None or request.pixels is None or needs_statistics(request):
        facts = _read_facts(listings, chosen, request, scan, deep)
    else:
        facts = _requested_facts(chosen, request)
    mean, std = normalization(request, facts.statistics, facts.channels)
    kind = WholeFolderImages if request.resize_on_read is False else FolderImages
    images = [
        ImageSet(kind(split, facts.channels, facts.pixels, facts.bits), split.labels, split.classes) for split in chosen
    ]
    return ImageData(images[0], images[1], mean, std, facts.channels, facts.pixels)


def _read_facts(
    listings: Splits, chosen: Splits, request: ImageRequest, scan: Callable[[], Facts] | None, deep: Sequence[Path]
) -> Facts:
    train = chosen[0]
    name = folder_cache.fingerprint(
        [(str(split.root), split.files, split.stamps.tolist()) for split in chosen],
        request.channels,
        request.pixels,
        *([split.files, split.stamps.tolist()] for split in listings if deep),
    )
    cached = folder_cache.read(name)
    if cached is not None and not _fits(cached, chosen, request):
        _log.warning("%s: the facts about %s in the cache are wrong; reading the images", name, train.root)
        cached = None
    facts = cached
    if facts is None:
        facts = scan() if scan else _requested_facts(chosen, request)
        facts = replace(facts, bits=significant_bits(deep))
        if facts.bits is not None:
            _log.info("%s: 16-bit images, of which %d bits are used in all images", train.root.parent, facts.bits)
    if needs_statistics(request) and facts.statistics is None:
        _log.info("reading %d images below %s for their mean and std", len(train), train.root)
        images = FolderImages(train, facts.channels, facts.pixels, facts.bits)
        facts = facts.with_statistics(*channel_statistics(images))
    if facts != cached:
        folder_cache.write(name, facts)
    return facts


def _fits(facts: Facts, chosen: Splits, request: ImageRequest) -> bool:
    """Return whether cached facts agree with the listings, the request and the first image."""
    pixels = request.pixels or min(image_size(chosen[0].path(0)))
    expected = (chosen[0].classes, tuple(map(len, chosen)), request.channels or facts.channels, pixels)
    return expected == (facts.classes, facts.counts, facts.channels, facts.pixels)


def _requested_facts(chosen: Splits, request: ImageRequest) -> Facts:
    assert request.channels is not None
    assert request.pixels is not None
    return Facts(chosen[0].classes, (len(chosen[0]), len(chosen[1])), request.channels, request.pixels, None)
