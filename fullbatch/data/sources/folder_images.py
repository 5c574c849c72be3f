"""Images decoded from files on demand, resized or in their own size."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from fullbatch.data.sources.image_files import read_image, read_whole_image
from fullbatch.data.sources.listings import Listing

_log = logging.getLogger(__name__)
_THREADS = min(8, os.cpu_count() or 1)
_WORTH_A_THREAD = 8192  # bytes per file: for smaller ones Python's lock costs more than decoding (2x slower at 1 KB)


@dataclass(frozen=True)
class FolderImages:
    """Images decoded from files on demand, as ``channels`` x ``pixels`` x ``pixels``."""

    listing: Listing
    channels: int
    pixels: int

    def __len__(self) -> int:
        return len(self.listing)

    def fetch(self, ids: Tensor) -> Tensor:
        """Return the images ``ids``; ``OSError`` names a file that cannot be read."""
        chosen = ids.tolist()
        result = np.empty((len(chosen), self.channels, self.pixels, self.pixels), dtype=np.uint8)

        def decode(row: int) -> None:
            result[row] = read_image(self.listing.path(chosen[row]), self.channels, self.pixels)

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
        return folder_cache.fingerprint(self.listing.files, sizes, self.channels, shape)


class WholeFolderImages(FolderImages):
    """``FolderImages`` that transforms may read in their own size, see ``WholeImages``."""

    def whole(self, index: int) -> Tensor:
        """Return one image in its own size, uint8 [C, H, W]; ``OSError`` names a file that cannot be read."""
        return torch.from_numpy(read_whole_image(self.where(index), self.channels))

    def where(self, index: int) -> Path:
        """Return the file of an image."""
        return self.listing.path(index)

    def checksum(self) -> str:
        """Return a hash of the files' names and sizes."""
        return self._checksum(f"whole, or {self.pixels}")


def images_of(
    train: Listing, valid: Listing, request: ImageRequest, scan: Callable[[], Facts] | None = None
) -> ImageData:
    """Return the listed images, decoded on demand.

    With ``resize_on_read=False``, transforms that choose the size see the images in their own size.

    Args:
        train: files for training.
        valid: files for validation.
        request: the settings.
        scan: reads channels and pixels from the files, where the request leaves them blank. The results are kept in
            the user's cache folder until the files change.
    """
    if request.channels is None or request.pixels is None or needs_statistics(request):
        facts = _read_facts(train, valid, request, scan)
    else:
        facts = _requested_facts(train, valid, request)
    mean, std = normalization(request, facts.statistics, facts.channels)
    kind = WholeFolderImages if request.resize_on_read is False else FolderImages
    images = [
        ImageSet(kind(split, facts.channels, facts.pixels), split.labels, split.classes) for split in (train, valid)
    ]
    return ImageData(images[0], images[1], mean, std, facts.channels, facts.pixels)


def _read_facts(train: Listing, valid: Listing, request: ImageRequest, scan: Callable[[], Facts] | None) -> Facts:
    name = folder_cache.fingerprint(
        [(str(split.root), split.files, split.stamps.tolist()) for split in (train, valid)],
        request.channels,
        request.pixels,
    )
    cached = folder_cache.read(name)
    facts = cached or (scan() if scan else _requested_facts(train, valid, request))
    if needs_statistics(request) and facts.statistics is None:
        _log.info("reading %d images below %s for their mean and std", len(train), train.root)
        facts = facts.with_statistics(*channel_statistics(FolderImages(train, facts.channels, facts.pixels)))
    if facts != cached:
        folder_cache.write(name, facts)
    return facts


def _requested_facts(train: Listing, valid: Listing, request: ImageRequest) -> Facts:
    assert request.channels is not None
    assert request.pixels is not None
    return Facts(train.classes, (len(train), len(valid)), request.channels, request.pixels, None)
