"""The digits: one fixed stratified split, exact gray values, class-balanced subsets."""

import hashlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from sklearn import datasets

from fullbatch.data.dataset import ImageData, ImageRequest, ImageSet, load_images
from fullbatch.data.sources import digits as reader


def digits(**settings: Any) -> ImageData:
    return load_images("digits", ImageRequest(**settings))


def rows(images: ImageSet) -> torch.Tensor:
    """The images as the pen's values 0..16, [N, 64]."""
    found = images.images.fetch(torch.arange(len(images))).flatten(1)
    return torch.round(found * (16 / 255)).to(torch.int64)


def test_the_split_is_fixed() -> None:
    """The split is part of the data set: results of different versions can be compared."""
    digest = hashlib.sha256(digits().valid.images.fetch(torch.arange(360)).numpy().tobytes()).hexdigest()
    assert digest[:16] == "51ff640823ae6c89"
    assert torch.equal(digits(subset_seed=5).valid.labels, digits().valid.labels)


def test_without_the_table_in_its_place_scikit_learn_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked, load = digits(), [], datasets.load_digits
    monkeypatch.setattr(reader, "find_spec", lambda name: None)
    monkeypatch.setattr(datasets, "load_digits", lambda **how: asked.append(how) or load(**how))
    for ours, theirs in ((found.train, digits().train), (found.valid, digits().valid)):
        assert torch.equal(rows(ours), rows(theirs))
        assert torch.equal(ours.labels, theirs.labels)
    assert asked


@pytest.mark.slow
def test_a_run_does_not_wait_for_scikit_learn() -> None:
    code = "import sys; from fullbatch.data.dataset import load_images; load_images('digits'); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"torch", "fullbatch.data.sources.digits"} <= set(shown)
    assert not {"sklearn", "scipy.stats"} & set(shown)


def test_the_split_is_stratified() -> None:
    data = digits()
    assert (len(data.train), len(data.valid)) == (1437, 360)
    assert data.valid.labels.bincount().tolist() == [36] * 10
    assert data.classes == data.valid.classes == tuple("0123456789")
    assert (data.channels, data.pixels) == (1, 8)


def test_every_image_is_in_exactly_one_half_with_its_label() -> None:
    data = digits()
    values, targets = datasets.load_digits(return_X_y=True)
    expected = sorted([*row, label] for row, label in zip(values.astype(int).tolist(), targets.tolist(), strict=True))
    halves = [torch.cat([rows(half), half.labels[:, None]], 1).tolist() for half in (data.train, data.valid)]
    assert sorted(halves[0] + halves[1]) == expected
    assert not {tuple(row) for row in halves[0]} & {tuple(row) for row in halves[1]}


def test_the_17_gray_values_are_spread_over_all_256() -> None:
    found = digits().train.images.fetch(torch.arange(1437))
    assert found.dtype == torch.uint8
    assert found.unique().tolist() == [round(value * 255 / 16) for value in range(17)]


def test_mean_and_std_are_those_of_the_training_images_used() -> None:
    data = digits(size=100)
    values = data.train.images.fetch(torch.arange(100)).double() / 255
    assert data.mean == pytest.approx([float(values.mean())], rel=1e-12)
    assert data.std == pytest.approx([float(values.std(correction=0))], rel=1e-12)


def test_subsets_are_balanced() -> None:
    data = digits(size=205, valid_size=50, subset_seed=3)
    assert sorted(data.train.labels.bincount().tolist()) == [20] * 5 + [21] * 5
    assert data.valid.labels.bincount().tolist() == [5] * 10


def test_settings_that_contradict_the_digits_are_named() -> None:
    for settings, message in [
        ({"channels": 3}, "data.channels=3: digits has channels=1; leave data.channels blank or set it to 1"),
        ({"classes": 7}, "data.classes=7: digits has classes=10"),
        ({"pixels": 32}, "data.pixels=32: digits has pixels=8"),
        ({"size": 1438}, "data.size=1438: the training set has 1437 images; choose a number from 1 to 1437"),
        ({"valid_size": 0}, "data.valid_size=0: the validation set has 360 images"),
        ({"mean": [0.1, 0.2], "std": [1.0]}, "data.mean: 2 values, but the images have 1 channels"),
        ({"mean": [0.1], "std": [0.0]}, r"data.std=\[0.0\]: must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            digits(**settings)


def test_an_unknown_name_lists_the_sources() -> None:
    with pytest.raises(
        ValueError,
        match=r"data.name=MNIST: unknown; known: CIFAR10, CIFAR100, TinyImageNet, ImageNet, digits, imagefolder",
    ):
        load_images("MNIST")
    assert len(load_images("DIGITS", ImageRequest(size=10)).train) == 10
