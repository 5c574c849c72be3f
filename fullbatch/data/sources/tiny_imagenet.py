"""Tiny ImageNet: 200 classes of 64 x 64, found as a folder, unpacked from its archive or downloaded."""

import re
import tempfile
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from fullbatch.data.images import ImageData, ImageRequest, check_found
from fullbatch.data.sources.archives import Archive, data_folder, obtain
from fullbatch.data.sources.folder_images import decoded
from fullbatch.data.sources.listings import Listing, chosen, images_in, listing
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
    """Return Tiny ImageNet: 100,000 training and 10,000 validation images of 3 x 64 x 64, some of them grey there.

    The folder ``tiny-imagenet-200`` below ``data.path`` is used where it is; otherwise it is made from the archive, as
    CIFAR's is found or fetched. Classes are the sorted WordNet names. The set is ordered by class, so subsets are
    class-balanced, and training images come in an order drawn with ``subset_seed``. A grey image becomes three
    equal channels.

    Raises:
        ValueError: settings that contradict the data set, or no ``data.path``.
        FileNotFoundError: the data are nowhere; the message says where they were looked for and what to do.
        OSError: the folder is there, but not whole; the message names the file.
    """
    for key, given, found in (("channels", request.channels, 3), ("pixels", request.pixels, 64)):
        check_found(key, given, found, ARCHIVE.name)
    root = data_folder(ARCHIVE.name, request)
    folder = root / _FOLDER
    if not folder.is_dir():
        obtain(ARCHIVE, root, request, partial(_unpack, root))
    train = _training(folder / "train", _classes(folder))
    check_found("classes", request.classes, len(train.classes), ARCHIVE.name)
    train, valid = chosen(train, _validation(folder / "val", train.classes), request)
    return decoded(train, valid, replace(request, channels=3, pixels=64))


def _unpack(root: Path, archive: Path) -> None:
    """Make the folder from the archive, of what belongs to it alone, and all at once."""
    with zipfile.ZipFile(archive) as content, tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as temporary:
        members = [name for name in content.namelist() if _MEMBER.fullmatch(name)]
        with progress(f"unpacking {archive.name}", len(members)) as advance:
            for name in members:
                stop_if_interrupted(f"stopped while unpacking {archive}; nothing of it stays")
                content.extract(name, temporary)
                advance(1)
        try:
            (Path(temporary) / _FOLDER).rename(root / _FOLDER)
        except OSError:
            if not (root / _FOLDER).is_dir():  # else another process has unpacked it meanwhile
                raise


def _classes(folder: Path) -> list[str]:
    classes, train = sorted(_lines(folder / "wnids.txt")), folder / "train"
    entries = train.iterdir() if train.is_dir() else ()
    found = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    if classes != found:
        difference = ", ".join(sorted({*classes} ^ {*found})[:3])
        raise _not_whole(folder / "wnids.txt", f"the classes in it are not the folders in train ({difference})")
    return classes


def _training(root: Path, classes: list[str]) -> Listing:
    entries, labels = [], []
    for label, name in enumerate(classes):
        images = root / name / "images"
        if not images.is_dir():
            raise _not_whole(images, "the folder is missing")
        found = images_in(images)
        entries += [(f"{name}/images/{file}", status) for file, status in found]
        labels += [label] * len(found)
    return listing(root, classes, entries, labels)


def _validation(root: Path, classes: tuple[str, ...]) -> Listing:
    path, numbers = root / "val_annotations.txt", {name: number for number, name in enumerate(classes)}
    labels: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        file, _, rest = line.partition("\t")
        name = rest.split("\t")[0]
        if name not in numbers:
            raise _not_whole(path, f"line {number} gives {file!r} the unknown class {name!r}")
        labels[file] = numbers[name]
    if not (root / "images").is_dir():
        raise _not_whole(root / "images", "the folder is missing")
    found = dict(images_in(root / "images"))
    if labels.keys() != found.keys():
        file = min(labels.keys() ^ found.keys())
        raise _not_whole(path, f"{file} is {'not in the folder images' if file in labels else 'not in it'}")
    return listing(root / "images", classes, sorted(found.items()), [labels[file] for file in sorted(found)])


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise _not_whole(path, "the file is missing") from None
    except UnicodeDecodeError:
        raise _not_whole(path, "it is not text") from None


def _not_whole(path: Path, problem: str) -> OSError:
    return OSError(
        f"{path}: {problem}; remove or rename the folder {_FOLDER}, and it is made again from {ARCHIVE.filename}"
    )
