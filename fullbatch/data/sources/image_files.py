"""Decoding of image files into arrays of the requested channels and size."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_MODES = {1: "L", 3: "RGB"}
_GRAY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I;16L")


def read_image(path: Path, channels: int, pixels: int) -> np.ndarray:
    """Return an image file as uint8 [channels, pixels, pixels].

    An image of another size is resized (shorter side, bilinear, antialiased) and cropped at its center. Gray, palette
    and 16-bit images and those with an alpha channel are converted.

    Raises:
        OSError: the file is empty, damaged or not an image; the message names it.
    """
    with _opened(path, channels) as image:
        if image.size == (pixels, pixels):
            return _as_array(image)
        from torchvision.transforms.v2 import functional  # noqa: PLC0415

        return _as_array(functional.center_crop(functional.resize(image, [pixels]), [pixels, pixels]))


def read_whole_image(path: Path, channels: int) -> np.ndarray:
    """Return an image file in its own size, uint8 [channels, H, W]; otherwise as ``read_image``."""
    with _opened(path, channels) as image:
        return _as_array(image)


@contextmanager
def _opened(path: Path, channels: int) -> "Iterator[Image.Image]":
    from PIL import Image  # noqa: PLC0415

    try:
        with Image.open(path) as image:
            yield _converted(image, _MODES[channels])
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds for damaged files
        raise unreadable(path, str(error)) from error


def _as_array(image: "Image.Image") -> np.ndarray:
    values = np.array(image)  # a copy: the image's own memory is read-only
    return values.reshape(image.height, image.width, -1).transpose(2, 0, 1)


def unreadable(path: Path, reason: str) -> OSError:
    """Return the error for a file that is not a readable image."""
    return OSError(f"{path}: not a readable image ({reason}); repair or remove it")


def _converted(image: "Image.Image", mode: str) -> "Image.Image":
    from PIL import Image  # noqa: PLC0415

    if image.mode.startswith("I;16"):  # convert() would clip the 16 bits at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no fixed range; save it with 8 or 16 bits per channel")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def scan_images(paths: Iterable[Path]) -> tuple[dict[tuple[int, int], Path], bool]:
    """Return an example of each size (width, height), and whether any image has colors; only headers are read.

    Raises:
        OSError: a file is damaged or not an image; the message names it.
    """
    from PIL import Image  # noqa: PLC0415

    sizes: dict[tuple[int, int], Path] = {}
    color = False
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.setdefault(image.size, path)
                color = color or image.mode not in _GRAY_MODES
        except Exception as error:  # as in read_image
            raise unreadable(path, str(error)) from error
    return sizes, color
