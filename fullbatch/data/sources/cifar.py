"""CIFAR-10 and CIFAR-100, with torchvision's files, checksums and readers."""

import os
import shutil
import tarfile
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fullbatch.data.images import (
    ImageData,
    ImageRequest,
    ImageSet,
    TensorImages,
    check_setting,
    choose_samples,
    image_data,
)
from fullbatch.data.sources.archives import Archive, data_folder, obtain


def load_cifar10(request: ImageRequest) -> ImageData:
    """Return CIFAR-10: 50,000 training and 10,000 validation images of 3 x 32 x 32; see ``load_cifar``."""
    return load_cifar("CIFAR10", 10, request)


def load_cifar100(request: ImageRequest) -> ImageData:
    """Return CIFAR-100: 50,000 training and 10,000 validation images of 3 x 32 x 32; see ``load_cifar``."""
    return load_cifar("CIFAR100", 100, request)


def load_cifar(name: str, classes: int, request: ImageRequest) -> ImageData:
    """Return the images of one of torchvision's CIFAR classes; ``size`` and ``valid_size`` take the first samples.

    The files in ``data.path`` are used if they are there. Otherwise they are unpacked from an archive, see ``obtain``.
    Only an archive with torchvision's checksum is opened, and torchvision verifies every file before it unpickles it.

    Raises:
        ValueError: settings contradict the data set, or ``data.path`` is blank.
        FileNotFoundError: the data set was not found; the message lists the places tried and says what to do.
    """
    import torchvision.datasets  # noqa: PLC0415 (seconds to import)

    for key, given, actual in (
        ("channels", request.channels, 3),
        ("classes", request.classes, classes),
        ("pixels", request.pixels, 32),
    ):
        check_setting(key, given, actual, name)
    source, root = getattr(torchvision.datasets, name), data_folder(name, request)
    try:
        train = _read(source, root, True, request)
    except RuntimeError:  # of torchvision: missing or corrupted
        archive = Archive(name, source.filename, source.url, source.tgz_md5)
        obtain(archive, root, request, partial(_unpack, source, root))
        train = _read(source, root, True, request)
    return image_data(train, _read(source, root, False, request), request, channels=3, pixels=32)


def _read(source: Any, root: Path, train: bool, request: ImageRequest) -> ImageSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, about old pickles
        data = source(root, train=train)
    labels = torch.tensor(data.targets, dtype=torch.int64)
    key, size = ("size", request.size) if train else ("valid_size", request.valid_size)
    used = len(choose_samples(labels, size, key, seed=None))
    images = torch.from_numpy(data.data.transpose(0, 3, 1, 2)).contiguous()  # stored channels first: no copy
    return ImageSet(TensorImages(images[:used]), labels[:used], tuple(data.classes))


def _unpack(source: Any, root: Path, archive: Path) -> None:
    files = {f"{source.base_folder}/{name}" for name, _ in (*source.train_list, *source.test_list)}
    files.add(f"{source.base_folder}/{source.meta['filename']}")
    (root / source.base_folder).mkdir(exist_ok=True)
    with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=root) as folder:
        for member in tar:
            name = os.path.normpath(member.name)
            content = tar.extractfile(member) if name in files else None
            if content is not None:
                part = Path(folder) / Path(name).name
                with content, part.open("wb") as target:
                    shutil.copyfileobj(content, target)
                part.replace(root / name)
