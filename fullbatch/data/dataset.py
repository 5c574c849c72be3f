"""The table of data sources, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fullbatch.data.images import ImageData, ImageRequest, Images, ImageSet, TensorImages
from fullbatch.data.sources.cifar import load_cifar10, load_cifar100
from fullbatch.data.sources.digits import load_digits
from fullbatch.data.sources.image_folder import image_folder_content, load_image_folder
from fullbatch.data.sources.imagenet import imagenet_content, load_imagenet
from fullbatch.data.sources.tiny_imagenet import load_tiny_imagenet

__all__ = [
    "SOURCES",
    "ImageData",
    "ImageRequest",
    "ImageSet",
    "Images",
    "TensorImages",
    "content_of_data",
    "load_images",
]

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


_CONTENTS: Mapping[str, Callable[[str | None], str]] = MappingProxyType(
    {"imagefolder": image_folder_content, "imagenet": imagenet_content}
)
_OFFICIAL = ("cifar10", "cifar100", "tinyimagenet", "digits")


def content_of_data(name: str, path: str | None) -> str | None:
    """Return what identifies the files of a data source wherever they are.

    It is a hash for folders of images, "" for official data sets, which are determined by their name, and None where
    it is unknown, as for files that are not there yet.
    """
    if name.lower() in _OFFICIAL:
        return ""
    try:
        return _CONTENTS[name.lower()](path)
    except (KeyError, OSError, ValueError):
        return None


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
