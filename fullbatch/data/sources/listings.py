"""Lists of image files in folders of classes."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fullbatch.data.images import ImageRequest, choose_samples, shuffle_ids
from fullbatch.data.sources.image_files import unreadable

_log = logging.getLogger(__name__)
_NAMED = 5  # names in a message
_HASHED_BYTES, _HASHED_IMAGES = 1 << 28, 10_000
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Listing:
    """The images of one split: files below ``root``, their sizes and labels.

    Names are bytes in one array: a million Python strings would take three times the memory in every reading process.

    Args:
        root: the folder of the split.
        classes: names of the classes.
        names: numpy bytes [N], paths relative to ``root`` as the file system spells them.
        stamps: int64 [N, 2], size in bytes and time of the last change in ns.
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
        """The names as strings."""
        return [os.fsdecode(name) for name in self.names.tolist()]

    def subset(self, ids: Tensor) -> "Listing":
        """Return the listing of the files ``ids``."""
        chosen = ids.numpy()
        return Listing(self.root, self.classes, self.names[chosen], self.stamps[chosen], self.labels[ids])

    def with_suffix(self, suffixes: Sequence[str]) -> list[int]:
        """Return the positions of the files with one of these suffixes, in any case."""
        names, chosen = np.char.lower(self.names), np.zeros(len(self), dtype=bool)
        for suffix in suffixes:
            chosen |= np.char.endswith(names, suffix.encode())
        return [int(index) for index in chosen.nonzero()[0]]

    def path(self, index: int) -> Path:
        """Return the path of the file number ``index``."""
        return self.root / os.fsdecode(bytes(self.names[index]))


Splits: TypeAlias = tuple[Listing, Listing]
"""The images for training and for validation."""


def listing(
    root: Path, classes: Sequence[str], entries: Iterable[tuple[str, os.stat_result]], labels: Sequence[int]
) -> Listing:
    """Return the listing of ``entries`` (path below ``root``, status); ``OSError`` where a file is empty."""
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
    """Return the images of each class folder of ``root``; folders and images are sorted by name.

    What is not used is logged.

    Raises:
        OSError: there is no class folder, or a class has no images or an empty file.
    """
    result, ignored = _list_split(root)
    log_ignored(root, ignored)
    return result


def content_of(roots: Sequence[Path]) -> str:
    """Return a hash of the images of these splits that does not depend on where they are.

    It covers all names and sizes, and the bytes of images at equal distances: of all of them up to 256 MiB and 10,000
    images, so that a start does not read terabytes. Errors are those of ``list_split``.
    """
    state = hashlib.blake2b(digest_size=16)
    for root in roots:
        images, _ = _list_split(root)
        state.update(json.dumps([images.files, images.stamps[:, 0].tolist()]).encode())
        size = int(images.stamps[:, 0].sum())
        for index in range(0, len(images), max(-(-size // _HASHED_BYTES), -(-len(images) // _HASHED_IMAGES))):
            with images.path(index).open("rb") as file:
                state.update(file.read(_HASHED_BYTES))
    return state.hexdigest()


def _list_split(root: Path) -> tuple[Listing, list[str]]:
    classes, ignored = class_folders(root)
    if not classes:
        raise FileNotFoundError(f"{root}: has no class folders; images are expected in {root}/<class>/")
    entries: list[tuple[str, os.stat_result]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images, others = images_in(root / name)
        entries += [(f"{name}/{file}", status) for file, status in images]
        labels += [label] * len(images)
        ignored += [f"{name}/{other}" for other in others]
    return listing(root, classes, entries, labels), ignored


def class_folders(root: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders in ``root`` and of its other entries, sorted; hidden folders are others.

    Raises:
        OSError: a link leads nowhere: its class would be missing.
    """
    entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    folders = [entry.name for entry in entries if entry.name[0] != "." and _exists(entry) and entry.is_dir()]
    return folders, [entry.name for entry in entries if entry.name not in folders]


def images_in(folder: Path) -> tuple[list[tuple[str, os.stat_result]], list[str]]:
    """Return names and status of the image files in ``folder``, and the names of its other entries, sorted.

    Hidden files are among the others.

    Raises:
        OSError: there are no images, or a link with the name of an image leads nowhere.
    """
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    named = [entry for entry in entries if entry.name[0] != "." and entry.name.lower().endswith(_SUFFIXES)]
    images = [entry for entry in named if _exists(entry) and entry.is_file()]
    if not images:
        raise FileNotFoundError(f"{folder}: contains no images; their suffixes are {' '.join(_SUFFIXES)}")
    names = {entry.name for entry in images}
    return [(entry.name, entry.stat()) for entry in images], [e.name for e in entries if e.name not in names]


def _exists(entry: "os.DirEntry[str]") -> bool:
    """Return True; ``OSError`` where the entry is a link to something that does not exist, or to itself."""
    try:
        entry.stat()
    except OSError as error:
        target = f"a link to {os.readlink(entry.path)}" if entry.is_symlink() else "unreadable"
        raise OSError(f"{entry.path}: {target} ({error.strerror}); repair or remove it") from error
    return True


def log_ignored(root: Path, names: Sequence[str]) -> None:
    """Log the entries below ``root`` that are not used, in one line."""
    if names:
        first = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        _log.warning("%s: ignored what is hidden or not an image, %d in all: %s", root, len(names), first)


def require_same_classes(train: Listing, valid: Listing) -> None:
    """Raise ``ValueError`` where the splits have fewer than two classes or different classes."""
    if len(train.classes) < 2:
        raise ValueError(f"{train.root}: only one class ({train.classes[0]}); at least two class folders are needed")
    missing, extra = sorted({*train.classes} - {*valid.classes}), sorted({*valid.classes} - {*train.classes})
    if missing or extra:
        problems = [f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("extra", extra)) if names]
        raise ValueError(f"{valid.root}: its classes differ from those of {train.root} ({'; '.join(problems)})")


def choose_subsets(train: Listing, valid: Listing, request: ImageRequest) -> Splits:
    """Return the samples to use: class-balanced subsets, and the training samples in random order.

    Both are drawn with ``subset_seed``, because the files are ordered by class.
    """
    ids = choose_samples(train.labels, request.size, "size", request.subset_seed)
    train = train.subset(shuffle_ids(ids, request.subset_seed))
    return train, valid.subset(choose_samples(valid.labels, request.valid_size, "valid_size", request.subset_seed))
