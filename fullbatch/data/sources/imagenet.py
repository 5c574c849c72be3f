"""ImageNet (ILSVRC 2012) in torchvision's layout, or made into it from the official archives."""

import logging
import shutil
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path

from fullbatch.data.images import ImageData, ImageRequest, check_found
from fullbatch.data.sources.archives import data_folder
from fullbatch.data.sources.folder_images import decoded
from fullbatch.data.sources.listings import chosen, list_split, require_same_classes

_log = logging.getLogger(__name__)
_SPLITS = ("train", "val")


def load_imagenet(request: ImageRequest) -> ImageData:
    """Return ImageNet from ``data.path/train/<wnid>/*.JPEG`` and ``data.path/val/<wnid>/*.JPEG``.

    A split whose folder is missing is unpacked from its archive in ``data.path``, by torchvision's reader and
    checksums. Classes are the sorted WordNet names. The set is ordered by class, so subsets are class-balanced, and
    training images come in an order drawn with ``subset_seed``. Images have various sizes: unless
    ``resize_on_read``, a transform that chooses the size (RandomResizedCrop) sees them as large as they are; without
    one, they are resized (shorter side) and cropped at their centre to ``pixels``, by default 224.

    Raises:
        ValueError: settings that contradict the data set, or no ``data.path``.
        OSError: neither the folders nor the archives are there, or they are not whole.
    """
    check_found("channels", request.channels, 3, "ImageNet")
    if request.mirrors:
        raise ValueError("data.mirrors: the archives of ImageNet are looked for in data.path alone")
    root = data_folder("ImageNet", request)
    for split in _SPLITS:
        if not (root / split).is_dir():
            _unpack(root, split)
    train, valid = list_split(root / "train"), list_split(root / "val")
    require_same_classes(train, valid)
    check_found("classes", request.classes, len(train.classes), str(root))
    train, valid = chosen(train, valid, request)
    pixels = 224 if request.pixels is None else request.pixels
    resized = bool(request.resize_on_read)
    return decoded(train, valid, replace(request, channels=3, pixels=pixels, resize_on_read=resized))


def _unpack(root: Path, split: str) -> None:
    """Make the folder of a split from its archive: in a hidden one, which takes its name when all is there."""
    from torchvision.datasets import imagenet  # noqa: PLC0415 (seconds to import)

    needed = [imagenet.ARCHIVE_META[part][0] for part in ("devkit", split)]
    missing = [name for name in needed if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"data.path={root}: ImageNet is not there: neither the folder {split} (with a folder of images for each "
            f"class) nor {' and '.join(missing)}, from which it would be made. Nobody may pass these files on: get "
            "them from https://image-net.org/download.php (an account is needed), put them there and start again."
        )
    unfinished = root / f".{split}.unpacking"
    shutil.rmtree(unfinished, ignore_errors=True)
    _log.info("unpacking %s in %s; this takes a while", needed[1], root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tarfile's, about filters of the extraction
            imagenet.parse_devkit_archive(root)
            parse = imagenet.parse_train_archive if split == "train" else imagenet.parse_val_archive
            parse(root, folder=unfinished.name)
    except (RuntimeError, tarfile.TarError) as error:  # RuntimeError: torchvision, of a wrong checksum
        raise OSError(f"data.path={root}: {error}") from error
    unfinished.rename(root / split)
