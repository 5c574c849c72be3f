"""ImageNet (ILSVRC 2012) in torchvision's layout, unpacked from the official archives where it is missing."""

import logging
import shutil
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path

from fullbatch.data.images import ImageData, ImageRequest, check_setting
from fullbatch.data.sources.archives import data_folder
from fullbatch.data.sources.folder_images import images_of
from fullbatch.data.sources.listings import choose_subsets, content_of, list_split, require_same_classes

_log = logging.getLogger(__name__)
_SPLITS = ("train", "val")


def load_imagenet(request: ImageRequest) -> ImageData:
    """Return ImageNet from ``data.path/train/<wnid>/*.JPEG`` and ``data.path/val/<wnid>/*.JPEG``.

    A split whose folder is missing is unpacked from its archive in ``data.path``, with torchvision's reader and
    checksums. Classes are the sorted WordNet names. Subsets are class-balanced, and training images come in an order
    drawn with ``subset_seed``. Images have various sizes: unless ``resize_on_read``, a transform that chooses the size
    (RandomResizedCrop) sees them in their own size. Without such a transform, they are resized (shorter side) and
    cropped at their center to ``pixels``, by default 224.

    Raises:
        ValueError: settings contradict the data set, or ``data.path`` is blank.
        OSError: folders and archives are missing or damaged.
    """
    check_setting("channels", request.channels, 3, "ImageNet")
    if request.mirrors:
        raise ValueError("data.mirrors: the archives of ImageNet are only searched for in data.path")
    root = data_folder("ImageNet", request)
    for split in _SPLITS:
        if not (root / split).is_dir():
            _unpack(root, split)
    listings = train, valid = list_split(root / "train"), list_split(root / "val")
    require_same_classes(train, valid)
    check_setting("classes", request.classes, len(train.classes), str(root))
    train, valid = choose_subsets(train, valid, request)
    pixels = 224 if request.pixels is None else request.pixels
    resized = bool(request.resize_on_read)
    request = replace(request, channels=3, pixels=pixels, resize_on_read=resized)
    return images_of(listings, (train, valid), request)


def imagenet_content(path: str | None) -> str:
    """Return the hash of the unpacked images below ``path``; ``OSError`` where they are not there yet."""
    root = data_folder("ImageNet", ImageRequest(path))
    return content_of([root / split for split in _SPLITS])


def _unpack(root: Path, split: str) -> None:
    """Unpack the archive of a split into a hidden folder, which is renamed when it is complete."""
    from torchvision.datasets import imagenet  # noqa: PLC0415 (seconds to import)

    needed = [imagenet.ARCHIVE_META[part][0] for part in ("devkit", split)]
    missing = [name for name in needed if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"data.path={root}: ImageNet is missing: there is neither a folder {split} with a folder of images per "
            f"class nor {' and '.join(missing)} to unpack it from. Download these files from "
            "https://image-net.org/download.php (this requires an account), put them there and start again."
        )
    unfinished = root / f".{split}.unpacking"
    shutil.rmtree(unfinished, ignore_errors=True)
    _log.info("unpacking %s in %s; this takes a while", needed[1], root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tarfile's, about extraction filters
            imagenet.parse_devkit_archive(root)
            parse = imagenet.parse_train_archive if split == "train" else imagenet.parse_val_archive
            parse(root, folder=unfinished.name)
    except (RuntimeError, tarfile.TarError) as error:  # RuntimeError: wrong checksum
        raise OSError(f"data.path={root}: {error}") from error
    unfinished.rename(root / split)
