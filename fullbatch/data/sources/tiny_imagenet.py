"""Tiny ImageNet: 200 classes of 64 x 64 images, from a folder, its archive or the internet."""

import re
import tempfile
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from fullbatch.data.images import ImageData, ImageRequest, check_setting
from fullbatch.data.sources.archives import Archive, data_folder, obtain
from fullbatch.data.sources.folder_images import images_of
from fullbatch.data.sources.listings import Listing, choose_subsets, class_folders, images_in, listing, log_ignored
from fullbatch.runtime.logs import progress
from fullbatch.runtime.stop_requests import stop_if_interrupted

ARCHIVE = Archive(
    "TinyImageNet",
    "tiny-imagenet-200.zip",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "90528d7ca1a48142e341f4ef8d21d0de",
)
_FOLDER = "tiny-imagenet-200"
_MEMBER = re.compile(  # the test images have no labels
    rf"{_FOLDER}/(wnids\.txt|words\.txt|train/(n\d+)/images/\2_\d+\.JPEG|val/(val_annotations\.txt|images/val_\d+\.JPEG))"
)


def load_tiny_imagenet(request: ImageRequest) -> ImageData:
    """Return Tiny ImageNet: 100,000 training and 10,000 validation images of 3 x 64 x 64.

    Where the folder ``tiny-imagenet-200`` in ``data.path`` is missing, it is unpacked from the archive, see ``obtain``.
    Classes are the sorted WordNet names. Subsets are class-balanced, and training images come in an order drawn with
    ``subset_seed``. Gray images get three equal channels.

    Raises:
        ValueError: settings contradict the data set, or ``data.path`` is blank.
        FileNotFoundError: the data set was not found; the message lists the places tried and says what to do.
        OSError: the folder is incomplete; the message names the file.
    """
    for key, given, actual in (("channels", request.channels, 3), ("pixels", request.pixels, 64)):
        check_setting(key, given, actual, ARCHIVE.name)
    root = data_folder(ARCHIVE.name, request)
    folder = root / _FOLDER
    if not folder.is_dir():
        obtain(ARCHIVE, root, request, partial(_unpack, root))
    train = _list_train(folder / "train", _classes(folder))
    check_setting("classes", request.classes, len(train.classes), ARCHIVE.name)
    listings = train, _list_valid(folder / "val", train.classes)
    return images_of(listings, choose_subsets(*listings, request), replace(request, channels=3, pixels=64))


def _unpack(root: Path, archive: Path) -> None:
    """Unpack the images and labels of the archive atomically."""
    with zipfile.ZipFile(archive) as content, tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as temporary:
        members = [name for name in content.namelist() if _MEMBER.fullmatch(name)]
        with progress(f"unpacking {archive.name}", len(members)) as advance:
            for name in members:
                stop_if_interrupted(f"stopped while unpacking {archive}; the incomplete folder is removed")
                content.extract(name, temporary)
                advance(1)
        try:
            (Path(temporary) / _FOLDER).rename(root / _FOLDER)
        except OSError:
            if not (root / _FOLDER).is_dir():  # else another process has unpacked it meanwhile
                raise


def _classes(folder: Path) -> list[str]:
    classes, train = sorted(_lines(folder / "wnids.txt")), folder / "train"
    folders = class_folders(train)[0] if train.is_dir() else []
    if classes != folders:
        difference = ", ".join(sorted({*classes} ^ {*folders})[:3])
        raise _incomplete(folder / "wnids.txt", f"its classes are not the folders in train ({difference})")
    return classes


def _list_train(root: Path, classes: list[str]) -> Listing:
    entries, labels, ignored = [], [], []
    for label, name in enumerate(classes):
        images = root / name / "images"
        if not images.is_dir():
            raise _incomplete(images, "the folder is missing")
        files, others = images_in(images)
        ignored += [f"{name}/images/{other}" for other in others]
        entries += [(f"{name}/images/{file}", status) for file, status in files]
        labels += [label] * len(files)
    log_ignored(root, ignored)
    return listing(root, classes, entries, labels)


def _list_valid(root: Path, classes: tuple[str, ...]) -> Listing:
    path, numbers = root / "val_annotations.txt", {name: number for number, name in enumerate(classes)}
    labels: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        file, _, rest = line.partition("\t")
        name = rest.split("\t")[0]
        if name not in numbers:
            raise _incomplete(path, f"line {number} has the unknown class {name!r} for {file!r}")
        labels[file] = numbers[name]
    if not (root / "images").is_dir():
        raise _incomplete(root / "images", "the folder is missing")
    images, ignored = images_in(root / "images")
    log_ignored(root / "images", ignored)
    files = dict(images)
    if labels.keys() != files.keys():
        file = min(labels.keys() ^ files.keys())
        raise _incomplete(path, f"{file} is {'not in the folder images' if file in labels else 'not listed'}")
    return listing(root / "images", classes, sorted(files.items()), [labels[file] for file in sorted(files)])


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise _incomplete(path, "the file is missing") from None
    except UnicodeDecodeError:
        raise _incomplete(path, "it is not text") from None


def _incomplete(path: Path, problem: str) -> OSError:
    return OSError(
        f"{path}: {problem}; remove or rename the folder {_FOLDER} to unpack it again from {ARCHIVE.filename}"
    )
