"""The user's own images: ``path/train/<class>/*`` and ``path/val/<class>/*`` (or ``test``)."""

from functools import partial
from pathlib import Path

from fullbatch.data.images import ImageData, ImageRequest, check_setting
from fullbatch.data.sources.folder_cache import Facts
from fullbatch.data.sources.folder_images import images_of
from fullbatch.data.sources.image_files import scan_images
from fullbatch.data.sources.listings import Listing, choose_subsets, content_of, list_split, require_same_classes
from fullbatch.runtime.files import expand_home


def load_image_folder(request: ImageRequest) -> ImageData:
    """Return the images below ``data.path``; classes are the sorted folder names.

    Subsets are class-balanced, and training images come in an order drawn with ``subset_seed``. Hidden files, files
    without the suffix of an image and folders within those of the classes are left out and named in the log. Of 16-bit
    images, as many bits are used as the largest value of all images has (8, 10, 12, 14 or 16). Size, channels, range,
    mean and std that had to be read from the images are kept in the user's cache folder until the folder changes.
    Images are resized (shorter side) and cropped at their center as they are read, unless ``resize_on_read`` is False.

    Raises:
        ValueError: settings are missing or contradict the images, or the splits have different classes.
        OSError: a folder is missing or empty, or a file is not a readable image.
    """
    train_folder, valid_folder = _split_folders(request.path)
    listings = train, valid = list_split(train_folder), list_split(valid_folder)
    require_same_classes(train, valid)
    check_setting("classes", request.classes, len(train.classes), str(train.root))
    if request.channels is not None and request.channels not in (1, 3):
        raise ValueError(f"data.channels={request.channels}: choose 1 (gray), 3 (color) or blank (those of the images)")
    train, valid = choose_subsets(train, valid, request)
    return images_of(listings, (train, valid), request, partial(_scan, train, valid, request))


def image_folder_content(path: str | None) -> str:
    """Return the hash of the images below ``path``; errors are those of ``load_image_folder``."""
    return content_of(_split_folders(path))


def _split_folders(path: str | None) -> tuple[Path, Path]:
    layout = "images are expected in its subfolders train/<class>/ and val/<class>/ (or test/<class>/)"
    if path is None:
        raise ValueError(f"data.path: blank; imagefolder needs a folder: {layout}")
    root = expand_home(path, "data.path").absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"data.path={root}: no such folder; {layout}")
    if not (root / "train").is_dir():
        raise FileNotFoundError(f"data.path={root}: has no folder 'train'; {layout}")
    names = [name for name in ("val", "test") if (root / name).is_dir()]
    if not names:
        raise FileNotFoundError(f"data.path={root}: has neither a folder 'val' nor 'test'; {layout}")
    return root / "train", root / names[0]


def _scan(train: Listing, valid: Listing, request: ImageRequest) -> Facts:
    channels, pixels = request.channels, request.pixels
    if channels is None or pixels is None:
        sizes, color = scan_images(split.path(index) for split in (train, valid) for index in range(len(split)))
        channels = channels or (3 if color else 1)
        pixels = pixels or _common_side(sizes)
    return Facts(train.classes, (len(train), len(valid)), channels, pixels, None)


def _common_side(sizes: dict[tuple[int, int], Path]) -> int:
    examples = ", ".join(f"{path} is {width}x{height}" for (width, height), path in list(sizes.items())[:2])
    if len(sizes) > 1:
        raise ValueError(f"data.pixels: blank, but the images differ in size ({examples}); set the side to resize to")
    ((width, height),) = sizes
    if width != height:
        raise ValueError(f"data.pixels: blank, but the images are not square ({examples}); set the side to resize to")
    return width
