"""From files to blocks on the device: sets of pictures, augmentation, and the loader that makes blocks of them."""

from fullbatch.data.augmentation import Augmentation
from fullbatch.data.blocks import BlockLoader, BlockSequence
from fullbatch.data.datasets import load_pictures
from fullbatch.data.pictures import PictureData, Pictures, PictureSet, TensorPictures

__all__ = [
    "Augmentation",
    "BlockLoader",
    "BlockSequence",
    "PictureData",
    "PictureSet",
    "Pictures",
    "TensorPictures",
    "load_pictures",
]
