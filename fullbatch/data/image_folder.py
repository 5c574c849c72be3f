"""The user's own pictures: ``path/train/<class>/*`` and ``path/val/<class>/*`` (or ``test``), decoded when asked."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fullbatch.data import folder_cache
from fullbatch.data.picture_files import read_picture, scan_pictures, unreadable
from fullbatch.data.pictures import (
    PictureData,
    PictureRequest,
    PictureSet,
    channel_statistics,
    check_found,
    choose_samples,
    mixed,
    needs_statistics,
    normalisation,
)

_log = logging.getLogger(__name__)
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_THREADS = min(8, os.cpu_count() or 1)
_WORTH_A_THREAD = 8192  # bytes a file: below, Python's lock costs more than decoding (measured: 2x slower at 1 KB)


@dataclass(frozen=True)
class Listing:
    """The pictures of one split: ``files`` ('class/name') and their ``stamps`` (bytes, time of change in ns)."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]
    labels: Tensor

    def subset(self, ids: Tensor) -> "Listing":
        """Return the listing of the files ``ids`` alone."""
        chosen = ids.tolist()
        files, stamps = tuple(self.files[i] for i in chosen), tuple(self.stamps[i] for i in chosen)
        return Listing(self.root, self.classes, files, stamps, self.labels[ids])

    def path(self, index: int) -> Path:
        """Return where the file number ``index`` lies."""
        return self.root / self.files[index]


@dataclass(frozen=True)
class FolderPictures:
    """Pictures decoded from files on demand, as ``channels`` x ``pixels`` x ``pixels``."""

    listing: Listing
    channels: int
    pixels: int

    def __len__(self) -> int:
        return len(self.listing.files)

    def fetch(self, ids: Tensor) -> Tensor:
        """Decode the pictures ``ids``; raise OSError naming the file that cannot be read."""
        chosen = ids.tolist()
        result = np.empty((len(chosen), self.channels, self.pixels, self.pixels), dtype=np.uint8)

        def decode(row: int) -> None:
            result[row] = read_picture(self.listing.path(chosen[row]), self.channels, self.pixels)

        size = sum(self.listing.stamps[index][0] for index in chosen)
        if size < _WORTH_A_THREAD * len(chosen) or torch.utils.data.get_worker_info() is not None:
            for row in range(len(chosen)):
                decode(row)
        else:
            with ThreadPoolExecutor(_THREADS) as threads:
                list(threads.map(decode, range(len(chosen))))
        return torch.from_numpy(result)

    def checksum(self) -> str:
        """Return a name for the files' names and sizes and the shape; reading them all could take hours."""
        sizes = [size for size, _ in self.listing.stamps]
        return folder_cache.fingerprint(self.listing.files, sizes, self.channels, self.pixels)


def load_image_folder(request: PictureRequest) -> PictureData:
    """Return the pictures below ``data.path``; classes are the sorted folder names, subsets are class-balanced.

    Training pictures come in an order drawn with ``subset_seed``, the same in every run.
    Hidden files, and files whose name does not end like a picture's, are left out. What had to be read from the
    pictures (size, channels, mean, std) is remembered in the user's cache folder until the folder changes.

    Raises:
        ValueError: settings that are missing or contradict the pictures, or splits with different classes.
        OSError: a folder that is missing or empty, or a file that is not a readable picture.
    """
    train, valid = _list_splits(request)
    check_found("classes", request.classes, len(train.classes), str(train.root))
    if request.channels is not None and request.channels not in (1, 3):
        raise ValueError(f"data.channels={request.channels}: give 1 (grey), 3 (colour) or leave it blank (as found)")
    chosen = choose_samples(train.labels, request.size, "size", request.subset_seed)
    train = train.subset(mixed(chosen, request.subset_seed))  # by class, a block would hold one class alone
    valid = valid.subset(choose_samples(valid.labels, request.valid_size, "valid_size", request.subset_seed))
    name = folder_cache.fingerprint(
        [(str(split.root), split.files, split.stamps) for split in (train, valid)], request.channels, request.pixels
    )
    remembered = folder_cache.read(name)
    facts = remembered or _facts(train, valid, request)
    pictures = FolderPictures(train, facts.channels, facts.pixels)
    if needs_statistics(request) and facts.statistics is None:
        _log.info("reading %d pictures below %s for their mean and std", len(train.files), train.root)
        facts = facts.with_statistics(*channel_statistics(pictures))
    if facts != remembered:
        folder_cache.write(name, facts)
    mean, std = normalisation(request, facts.statistics, facts.channels)
    return PictureData(
        PictureSet(pictures, train.labels, train.classes),
        PictureSet(FolderPictures(valid, facts.channels, facts.pixels), valid.labels, valid.classes),
        mean,
        std,
        facts.channels,
        facts.pixels,
    )


def _list_splits(request: PictureRequest) -> tuple[Listing, Listing]:
    layout = "the pictures are expected in train/<class>/ and val/<class>/ (or test/<class>/) below it"
    if request.path is None:
        raise ValueError(f"data.path: blank; imagefolder needs a folder: {layout}")
    root = Path(request.path).expanduser().absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"data.path={root}: no such folder; {layout}")
    if not (root / "train").is_dir():
        raise FileNotFoundError(f"data.path={root}: holds no folder 'train'; {layout}")
    found = [name for name in ("val", "test") if (root / name).is_dir()]
    if not found:
        raise FileNotFoundError(f"data.path={root}: holds neither a folder 'val' nor 'test'; {layout}")
    train, valid = list_split(root / "train"), list_split(root / found[0])
    if len(train.classes) < 2:
        raise ValueError(f"{train.root}: only one class ({train.classes[0]}); at least two class folders are needed")
    missing, extra = sorted({*train.classes} - {*valid.classes}), sorted({*valid.classes} - {*train.classes})
    if missing or extra:
        problems = [f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("extra", extra)) if names]
        raise ValueError(f"{valid.root}: its classes are not those of {train.root} ({'; '.join(problems)})")
    return train, valid


def list_split(root: Path) -> Listing:
    """List the pictures of each class folder of ``root``, both sorted by name.

    Raises:
        OSError: no class folder, a class without pictures, or an empty file.
    """
    classes = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."))
    if not classes:
        raise FileNotFoundError(f"{root}: holds no class folders; pictures are expected in {root}/<class>/")
    files: list[str] = []
    stamps: list[tuple[int, int]] = []
    counts = []
    for name in classes:
        entries = sorted((entry.name, entry.stat()) for entry in _pictures_in(root / name))
        files += [f"{name}/{file}" for file, _ in entries]
        stamps += [(stat.st_size, stat.st_mtime_ns) for _, stat in entries]
        counts.append(len(entries))
    for file, (size, _) in zip(files, stamps, strict=True):
        if size == 0:
            raise unreadable(root / file, "the file is empty")
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(counts))
    return Listing(root, classes, tuple(files), tuple(stamps), labels)


def _pictures_in(folder: Path) -> list[os.DirEntry[str]]:
    entries = [entry for entry in os.scandir(folder) if entry.name[0] != "."]
    pictures = [entry for entry in entries if entry.name.lower().endswith(_SUFFIXES) and entry.is_file()]
    if not pictures:
        raise FileNotFoundError(f"{folder}: holds no pictures; names end in {' '.join(_SUFFIXES)}")
    if len(pictures) < len(entries):
        _log.warning("%s: left out %d entries that are not pictures", folder, len(entries) - len(pictures))
    return pictures


def _facts(train: Listing, valid: Listing, request: PictureRequest) -> folder_cache.Facts:
    channels, pixels = request.channels, request.pixels
    if channels is None or pixels is None:
        sizes, colour = scan_pictures(
            [split.path(index) for split in (train, valid) for index in range(len(split.files))]
        )
        channels = channels or (3 if colour else 1)
        pixels = pixels or _common_side(sizes)
    counts = (len(train.files), len(valid.files))
    return folder_cache.Facts(train.classes, counts, channels, pixels, None)


def _common_side(sizes: dict[tuple[int, int], Path]) -> int:
    examples = ", ".join(f"{path} is {width}x{height}" for (width, height), path in list(sizes.items())[:2])
    if len(sizes) > 1:
        raise ValueError(f"data.pixels: blank, but the pictures differ in size ({examples}); give a side to resize to")
    ((width, height),) = sizes
    if width != height:
        raise ValueError(f"data.pixels: blank, but the pictures are not square ({examples}); give a side to resize to")
    return width
