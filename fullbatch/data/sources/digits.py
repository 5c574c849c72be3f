"""The handwritten digits of scikit-learn: 1,797 gray images of 8 x 8 pixels, without a download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from fullbatch.data.images import (
    ImageData,
    ImageRequest,
    ImageSet,
    TensorImages,
    balanced_subset,
    check_setting,
    choose_samples,
    image_data,
)

_VALID = 360  # of the 1,797; 36 of each class
_SPLIT_SEED = 0  # part of the definition of the data set, so not a setting


def load_digits(request: ImageRequest) -> ImageData:
    """Return the digits: 1,437 for training and 360 for validation, always the same split.

    The gray values 0..16 become round(255/16 value). Subsets are class-balanced, drawn with ``subset_seed``.
    """
    for key, given, actual in (
        ("channels", request.channels, 1),
        ("classes", request.classes, 10),
        ("pixels", request.pixels, 8),
    ):
        check_setting(key, given, actual, "digits")
    values, targets = _values_and_targets()
    images = (torch.from_numpy(values).view(-1, 1, 8, 8) * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(targets).to(torch.int64)
    valid = torch.zeros(len(labels), dtype=torch.bool)
    valid[balanced_subset(labels, _VALID, _SPLIT_SEED)] = True
    train_set = _subset(images[~valid], labels[~valid], request.size, "size", request.subset_seed)
    valid_set = _subset(images[valid], labels[valid], request.valid_size, "valid_size", request.subset_seed)
    return image_data(train_set, valid_set, request, channels=1, pixels=8)


def _values_and_targets() -> tuple[np.ndarray, np.ndarray]:
    """Return gray values [1797, 64] and labels, read from scikit-learn's table without importing it where possible."""
    package = find_spec("sklearn")
    table = Path(package.origin).parent / "datasets/data/digits.csv.gz" if package and package.origin else None
    if table is not None and table.exists():
        rows = np.loadtxt(table, delimiter=",")
        return rows[:, :-1], rows[:, -1].astype(int)
    from sklearn import datasets  # noqa: PLC0415 (takes three seconds, a quarter of a small run)

    values, targets = datasets.load_digits(return_X_y=True)
    return values, targets


def _subset(images: torch.Tensor, labels: torch.Tensor, size: int | None, key: str, seed: int) -> ImageSet:
    ids = choose_samples(labels, size, key, seed)
    return ImageSet(TensorImages(images[ids]), labels[ids], tuple("0123456789"))
