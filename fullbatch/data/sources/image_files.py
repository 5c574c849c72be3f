"""Decoding of image files into arrays of the requested channels and size."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_MODES = {1: "L", 3: "RGB"}
_GRAY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
DEPTHS = (8, 10, 12, 14, 16)
"""The numbers of significant bits of images that are stored with 16 bits per channel."""
MAY_BE_DEEP = (".png", ".tif", ".tiff")
"""The suffixes of files that may store 16 bits per channel without saying how many of them are used."""


def read_image(path: Path, channels: int, pixels: int, bits: int | None = 16) -> np.ndarray:
    """Return an image file as uint8 [channels, pixels, pixels].

    An image of another size is resized (shorter side, bilinear, antialiased) and cropped at its center. Gray, palette
    and 16-bit images and those with an alpha channel are converted. Of 16-bit gray images, the upper 8 of the lower
    ``bits`` are used, see ``significant_bits``; None refuses them.

    Raises:
        OSError: the file is empty, damaged, too large or not an image; the message names it.
    """
    with _opened(path, channels, bits) as image:
        if image.size == (pixels, pixels):
            return _as_array(image)
        from torchvision.transforms.v2 import functional  # noqa: PLC0415

        return _as_array(functional.center_crop(functional.resize(image, [pixels]), [pixels, pixels]))


def read_whole_image(path: Path, channels: int, bits: int | None = 16) -> np.ndarray:
    """Return an image file in its own size, uint8 [channels, H, W]; otherwise as ``read_image``."""
    with _opened(path, channels, bits) as image:
        return _as_array(image)


@contextmanager
def _opened(path: Path, channels: int, bits: int | None) -> "Iterator[Image.Image]":
    with _header(path) as image:
        yield _converted(image, _MODES[channels], bits)


@contextmanager
def _header(path: Path) -> "Iterator[Image.Image]":
    """Open an image, whose pixels are not read yet; ``OSError`` names a file that is damaged or too large."""
    from PIL import Image  # noqa: PLC0415

    try:
        with Image.open(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise ValueError(
                    f"{image.width}x{image.height} are more than {limit:,} pixels, the limit PIL.Image.MAX_IMAGE_PIXELS"
                )
            yield image
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


def _converted(image: "Image.Image", mode: str, bits: int | None) -> "Image.Image":
    from PIL import Image  # noqa: PLC0415

    if image.format == "PPM" and image.mode == "I":  # Pillow has scaled the values to 16 bits
        bits = 16
    elif _is_deep(image) and bits is None:
        raise ValueError(f"16 bits per channel in a file without the suffix {' or '.join(MAY_BE_DEEP)}; rename it")
    elif not _is_deep_gray(image):
        bits = None
    if bits is not None:  # convert() would clip the values at 255
        values = np.asarray(image)
        if values.max() >> bits:
            raise ValueError(f"values up to {values.max()}, but those of all images had {bits} bits before")
        return Image.fromarray((values >> (bits - 8)).astype(np.uint8)).convert(mode)
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no fixed range; save it with 8 or 16 bits per channel")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def _is_deep_gray(image: "Image.Image") -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")  # "I" in earlier versions


def _is_deep(image: "Image.Image") -> bool:
    """Return whether the file has 16 bits per channel; of colors, Pillow reads the upper 8."""
    return _is_deep_gray(image) or ";16" in str([tile[3] for tile in getattr(image, "tile", ())])


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image, from its header."""
    with _header(path) as image:
        return image.size


def significant_bits(paths: Iterable[Path]) -> int | None:
    """Return how many bits of the images with 16 bits per channel are used; None where there are no such images.

    Cameras and scanners of 10, 12 or 14 bits store their values in 16. The result is the smallest of ``DEPTHS`` that
    holds the values of all images, so that equal values stay equal. Images with fewer bits are not read.

    Raises:
        OSError: a file is damaged, or has colors, of which Pillow reads the upper 8 of 16 bits, and fewer bits are
            used; the message names it.
    """
    largest, color = -1, None
    for path in paths:
        with _header(path) as image:
            if not _is_deep(image):
                continue
            if _is_deep_gray(image):
                largest = max(largest, int(np.asarray(image).max()))
            else:
                color = path
                largest = max(largest, int(np.asarray(image.convert("RGB")).max()) << 8 | 255)
    if largest < 0:
        return None
    bits = next(bits for bits in DEPTHS if largest >> bits == 0)
    if bits < 16 and color is not None:
        reason = f"16 bits per color, of which {bits} are used and Pillow reads the upper 8; save it with 8 bits"
        raise unreadable(color, reason)
    return bits


def scan_images(paths: Iterable[Path]) -> tuple[dict[tuple[int, int], Path], bool]:
    """Return an example of each size (width, height), and whether any image has colors; only headers are read.

    Raises:
        OSError: a file is damaged or not an image; the message names it.
    """
    sizes: dict[tuple[int, int], Path] = {}
    color = False
    for path in paths:
        with _header(path) as image:
            sizes.setdefault(image.size, path)
            color = color or image.mode not in _GRAY_MODES
    return sizes, color
