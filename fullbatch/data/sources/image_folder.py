"""The user's own images: ``path/train/<class>/*`` and ``path/val/<class>/*`` (or ``test``), decoded when asked."""

from functools import partial
from pathlib import Path

from fullbatch.data.images import ImageData, ImageRequest, check_found
from fullbatch.data.sources.folder_cache import Facts
from fullbatch.data.sources.folder_images import decoded
from fullbatch.data.sources.image_files import scan_images
from fullbatch.data.sources.listings import Listing, chosen, list_split, require_same_classes


def load_image_folder(request: ImageRequest) -> ImageData:
    """Return the images below ``data.path``; classes are the sorted folder names, subsets are class-balanced.

    Training images come in an order drawn with ``subset_seed``, the same in every run.
    Hidden files, and files whose name does not end like an image's, are left out. What had to be read from the
    images (size, channels, mean, std) is remembered in the user's cache folder until the folder changes. Images
    are resized (shorter side) and cropped at their centre as they are read, unless ``resize_on_read`` is False.

    Raises:
        ValueError: settings that are missing or contradict the images, or splits with different classes.
        OSError: a folder that is missing or empty, or a file that is not a readable image.
    """
    train, valid = _list_splits(request)
    check_found("classes", request.classes, len(train.classes), str(train.root))
    if request.channels is not None and request.channels not in (1, 3):
        raise ValueError(f"data.channels={request.channels}: give 1 (grey), 3 (colour) or leave it blank (as found)")
    train, valid = chosen(train, valid, request)
    return decoded(train, valid, request, partial(_facts, train, valid, request))


def _list_splits(request: ImageRequest) -> tuple[Listing, Listing]:
    layout = "the images are expected in train/<class>/ and val/<class>/ (or test/<class>/) below it"
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
    require_same_classes(train, valid)
    return train, valid


def _facts(train: Listing, valid: Listing, request: ImageRequest) -> Facts:
    channels, pixels = request.channels, request.pixels
    if channels is None or pixels is None:
        sizes, colour = scan_images(split.path(index) for split in (train, valid) for index in range(len(split)))
        channels = channels or (3 if colour else 1)
        pixels = pixels or _common_side(sizes)
    return Facts(train.classes, (len(train), len(valid)), channels, pixels, None)


def _common_side(sizes: dict[tuple[int, int], Path]) -> int:
    examples = ", ".join(f"{path} is {width}x{height}" for (width, height), path in list(sizes.items())[:2])
    if len(sizes) > 1:
        raise ValueError(f"data.pixels: blank, but the images differ in size ({examples}); give a side to resize to")
    ((width, height),) = sizes
    if width != height:
        raise ValueError(f"data.pixels: blank, but the images are not square ({examples}); give a side to resize to")
    return width
