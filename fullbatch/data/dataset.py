"""The table of data sources: a name and the settings ``data.*`` in, training and validation images out."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fullbatch.data.images import ImageData, ImageRequest, Images, ImageSet, TensorImages
from fullbatch.data.sources.cifar import load_cifar10, load_cifar100
from fullbatch.data.sources.digits import load_digits
from fullbatch.data.sources.image_folder import load_image_folder
from fullbatch.data.sources.imagenet import load_imagenet
from fullbatch.data.sources.tiny_imagenet import load_tiny_imagenet

__all__ = ["SOURCES", "ImageData", "ImageRequest", "ImageSet", "Images", "TensorImages", "load_images"]

SOURCES: Mapping[str, Callable[[ImageRequest], ImageData]] = MappingProxyType(
    {
        "CIFAR10": load_cifar10,
        "CIFAR100": load_cifar100,
        "TinyImageNet": load_tiny_imagenet,
        "ImageNet": load_imagenet,
        "digits": load_digits,
        "imagefolder": load_image_folder,
    }
)


def load_images(
    name: str,
    *,
    path: str | None = None,
    size: int | None = None,
    valid_size: int | None = None,
    subset_seed: int = 0,
    channels: int | None = None,
    classes: int | None = None,
    pixels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    download: bool = True,
    mirrors: Sequence[str] | None = None,
    resize_on_read: bool | None = None,
) -> ImageData:
    """Return the training and validation images that the settings ``data.*`` describe.

    Args:
        name: a key of ``SOURCES`` in any case.
        path: folder of the files.
        size: number of training images to use; None means all.
        valid_size: number of validation images to use; None means all.
        subset_seed: seed of class-balanced subsets, and of the order where files are ordered by class (CIFAR takes the
            first images).
        channels: 1 (grey) or 3 (colour); None means as found.
        classes: number of classes; None means as found.
        pixels: side of the square images; None means as found.
        mean: one value a channel of the range 0..1; None computes mean and std from the training images used.
        std: as ``mean``; None computes it.
        download: whether the internet may be asked.
        mirrors: further places of the official archives: addresses or paths, of a folder or of the archive.
        resize_on_read: whether images in files are resized and cropped to ``pixels`` before any transform; None is
            False for ``ImageNet``, True elsewhere.

    Raises:
        ValueError: a setting that is unknown, missing or contradicts the data.
        OSError: files that are missing or unreadable.
    """
    loaders = {known.lower(): loader for known, loader in SOURCES.items()}
    if name.lower() not in loaders:
        raise ValueError(f"data.name={name}: unknown; known are {', '.join(SOURCES)}")
    request = ImageRequest(
        path=path,
        size=size,
        valid_size=valid_size,
        subset_seed=subset_seed,
        channels=channels,
        classes=classes,
        pixels=pixels,
        mean=mean,
        std=std,
        download=download,
        mirrors=tuple(mirrors or ()),
        resize_on_read=resize_on_read,
    )
    return loaders[name.lower()](request)
