"""The table of data sources, by name."""

from collections.abc import Callable, Mapping
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


def load_images(name: str, request: ImageRequest | None = None) -> ImageData:
    """Return the training and validation images of a data source.

    Args:
        name: a key of ``SOURCES`` in any case.
        request: path, number of images, shape and normalization, as in ``data.*``; None means the defaults.

    Raises:
        ValueError: the name is unknown, or a setting is missing or contradicts the data.
        OSError: files are missing or unreadable.
    """
    loaders = {key.lower(): loader for key, loader in SOURCES.items()}
    if name.lower() not in loaders:
        raise ValueError(f"data.name={name}: unknown; known: {', '.join(SOURCES)}")
    return loaders[name.lower()](request or ImageRequest())
