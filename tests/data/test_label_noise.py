"""Label noise: a function of (seed, sample), about the fraction asked for, spread evenly over the other classes."""

import pytest
import torch

from fullbatch.data.images import ImageData, ImageSet, TensorImages
from fullbatch.data.label_noise import noisy_labels, with_label_noise

LABELS = torch.arange(20_000) % 10


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9])
def test_the_fraction_is_replaced_by_other_classes_alike(fraction: float) -> None:
    noisy = noisy_labels(LABELS, 10, fraction, seed=3)
    replaced = noisy != LABELS
    deviation = (fraction * (1 - fraction) / 20_000) ** 0.5
    assert float(replaced.double().mean()) == pytest.approx(fraction, abs=5 * deviation)
    shifts = torch.bincount((noisy - LABELS)[replaced] % 10, minlength=10)
    expected = 20_000 * fraction / 9
    assert shifts[0] == 0
    assert all(abs(int(count) - expected) <= 5 * expected**0.5 for count in shifts[1:])
    assert noisy.dtype == LABELS.dtype
    assert noisy.min() >= 0
    assert noisy.max() < 10


def test_the_noise_of_a_sample_depends_on_the_seed_and_on_nothing_else() -> None:
    noisy = noisy_labels(LABELS, 10, 0.4, seed=3)
    assert torch.equal(noisy_labels(LABELS, 10, 0.4, seed=3), noisy)
    assert torch.equal(noisy_labels(LABELS[:100], 10, 0.4, seed=3), noisy[:100])
    other = noisy_labels(LABELS, 10, 0.4, seed=4) != LABELS
    assert float((other & (noisy != LABELS)).double().mean()) == pytest.approx(0.16, abs=0.02)


def test_more_noise_keeps_the_noise_that_was_there() -> None:
    some, more = (noisy_labels(LABELS, 10, fraction, seed=3) for fraction in (0.2, 0.6))
    replaced = some != LABELS
    assert torch.equal(more[replaced], some[replaced])


def test_two_classes_are_swapped() -> None:
    labels = torch.arange(1000) % 2
    noisy = noisy_labels(labels, 2, 0.3, seed=0)
    assert {*noisy.tolist()} == {0, 1}
    assert 200 < int((noisy != labels).sum()) < 400


def test_validation_labels_stay_true() -> None:
    images = TensorImages(torch.zeros(100, 1, 2, 2, dtype=torch.uint8))
    whole = ImageSet(images, LABELS[:100], tuple("0123456789"))
    data = ImageData(whole, whole, (0.5,), (0.5,), 1, 2)
    noisy = with_label_noise(data, 0.5, seed=3)
    assert torch.equal(noisy.valid.labels, LABELS[:100])
    assert torch.equal(noisy.train.labels, noisy_labels(LABELS[:100], 10, 0.5, seed=3))
    assert torch.equal(data.train.labels, LABELS[:100])
