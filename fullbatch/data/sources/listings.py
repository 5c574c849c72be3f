"""Lists of image files in folders of classes."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fullbatch.data.images import ImageRequest, choose_samples, mixed
from fullbatch.data.sources.image_files import unreadable

_log = logging.getLogger(__name__)
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Listing:
    """The images of one split: files below ``root``, their sizes and labels.

    Names are kept as bytes in one array: a million Python strings would take three times the memory, and once more in
    every reading process.

    Args:
        root: the folder of the split.
        classes: names of the classes.
        names: numpy bytes [N], paths relative to ``root`` as the file system spells them.
        stamps: int64 [N, 2], bytes and time of change in ns.
        labels: int64 [N].
    """

    root: Path
    classes: tuple[str, ...]
    names: np.ndarray
    stamps: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    @property
    def files(self) -> list[str]:
        """Return the names as strings."""
        return [os.fsdecode(name) for name in self.names.tolist()]

    def subset(self, ids: Tensor) -> "Listing":
        """Return the listing of the files ``ids`` alone."""
        chosen = ids.numpy()
        return Listing(self.root, self.classes, self.names[chosen], self.stamps[chosen], self.labels[ids])

    def path(self, index: int) -> Path:
        """Return where the file number ``index`` lies."""
        return self.root / os.fsdecode(bytes(self.names[index]))


def listing(
    root: Path, classes: Sequence[str], entries: Iterable[tuple[str, os.stat_result]], labels: Sequence[int]
) -> Listing:
    """List files, (path below ``root``, status); raise OSError where one is empty."""
    names, stamps = [], []
    for name, status in entries:
        if status.st_size == 0:
            raise unreadable(root / name, "the file is empty")
        names.append(os.fsencode(name))
        stamps.append((status.st_size, status.st_mtime_ns))
    return Listing(
        root,
        tuple(classes),
        np.array(names, dtype=np.bytes_),
        np.array(stamps, dtype=np.int64).reshape(-1, 2),
        torch.tensor(labels, dtype=torch.int64),
    )


def list_split(root: Path) -> Listing:
    """List the images of each class folder of ``root``, both sorted by name.

    Raises:
        OSError: no class folder, a class without images, or an empty file.
    """
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
    if not classes:
        raise FileNotFoundError(f"{root}: holds no class folders; images are expected in {root}/<class>/")
    entries: list[tuple[str, os.stat_result]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = images_in(root / name)
        entries += [(f"{name}/{file}", status) for file, status in found]
        labels += [label] * len(found)
    return listing(root, classes, entries, labels)


def images_in(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Return names and status of the images in ``folder``, by their names' ends; OSError where there are none."""
    entries = [entry for entry in os.scandir(folder) if entry.name[0] != "."]
    images = [entry for entry in entries if entry.name.lower().endswith(_SUFFIXES) and entry.is_file()]
    if not images:
        raise FileNotFoundError(f"{folder}: holds no images; names end in {' '.join(_SUFFIXES)}")
    if len(images) < len(entries):
        _log.warning("%s: left out %d entries that are not images", folder, len(entries) - len(images))
    return sorted((entry.name, entry.stat()) for entry in images)


def require_same_classes(train: Listing, valid: Listing) -> None:
    """Raise ``ValueError`` where the splits have fewer than two classes, or different ones."""
    if len(train.classes) < 2:
        raise ValueError(f"{train.root}: only one class ({train.classes[0]}); at least two class folders are needed")
    missing, extra = sorted({*train.classes} - {*valid.classes}), sorted({*valid.classes} - {*train.classes})
    if missing or extra:
        problems = [f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("extra", extra)) if names]
        raise ValueError(f"{valid.root}: its classes are not those of {train.root} ({'; '.join(problems)})")


def chosen(train: Listing, valid: Listing, request: ImageRequest) -> tuple[Listing, Listing]:
    """Return the samples to use, class-balanced where fewer than all, those for training in a mixed order.

    Both are drawn with ``subset_seed``: by class, the first samples and every block would hold one class alone.
    """
    ids = choose_samples(train.labels, request.size, "size", request.subset_seed)
    train = train.subset(mixed(ids, request.subset_seed))
    return train, valid.subset(choose_samples(valid.labels, request.valid_size, "valid_size", request.subset_seed))
