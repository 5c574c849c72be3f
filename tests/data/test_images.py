"""What all sources share: class-balanced subsets, statistics of channels, choice of samples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fullbatch.data.images import (
    ImageRequest,
    TensorImages,
    balanced_subset,
    channel_statistics,
    choose_samples,
    normalization,
    shuffle_ids,
)

label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor)


@given(label_lists, st.data(), st.integers(0, 10))
def test_a_balanced_subset_gives_every_class_its_turn(labels: Tensor, data: st.DataObject, seed: int) -> None:
    size = data.draw(st.integers(1, len(labels)))
    ids = balanced_subset(labels, size, seed)
    assert ids.dtype == torch.int64
    assert ids.tolist() == sorted(set(ids.tolist()))
    assert len(ids) == size
    taken, there = labels[ids].bincount(minlength=5), labels.bincount(minlength=5)
    for most in taken[there > 0].tolist():  # a class lags behind another by more than one only when it is used up
        lagging = taken < most - 1
        assert torch.equal(taken[lagging], there[lagging])


@given(label_lists, st.data(), st.integers(0, 10))
def test_a_balanced_subset_contains_the_smaller_ones(labels: Tensor, data: st.DataObject, seed: int) -> None:
    large = data.draw(st.integers(1, len(labels)))
    small = data.draw(st.integers(1, large))
    assert {*balanced_subset(labels, small, seed).tolist()} <= {*balanced_subset(labels, large, seed).tolist()}


def test_a_balanced_subset_depends_on_its_seed_only() -> None:
    labels = torch.arange(300) % 10
    first = balanced_subset(labels, 55, 0)
    torch.manual_seed(1)
    assert torch.equal(balanced_subset(labels, 55, 0), first)
    others = [balanced_subset(labels, 55, seed) for seed in range(1, 20)]
    assert not any(torch.equal(first, other) for other in others)
    extra = {tuple(labels[ids].bincount().tolist()) for ids in others}
    assert len(extra) > 5  # the classes with one more are drawn too
    reached = torch.cat(others).unique()
    assert len(reached) > 280  # and so is the sample of a class: all take part


def test_a_mixed_order_depends_on_its_seed_and_the_ids_only() -> None:
    ids = torch.arange(0, 600, 2)
    first = shuffle_ids(ids, 0)
    assert torch.equal(first.sort().values, ids)
    assert abs(float(torch.corrcoef(torch.stack([first, ids]))[0, 1])) < 0.2
    torch.manual_seed(1)
    assert torch.equal(shuffle_ids(ids, 0), first)
    assert not torch.equal(shuffle_ids(ids, 1), first)
    assert torch.equal(shuffle_ids(ids[:100], 0), first[first < 200])  # others beside them change nothing


def test_the_first_samples_or_all_or_a_message() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert choose_samples(labels, None, "size", 3).tolist() == [0, 1, 2, 3, 4]
    assert choose_samples(labels, 2, "size", None).tolist() == [0, 1]
    assert labels[choose_samples(labels, 2, "size", 3)].tolist() == [0, 1]
    for size in (0, -1, 6):
        with pytest.raises(ValueError, match=f"data.valid_size={size}: the validation set has 5 images; choose a num"):
            choose_samples(labels, size, "valid_size", None)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 2100), st.integers(1, 3), st.integers(1, 3), st.integers(0, 100))
def test_statistics_are_those_of_numpy(count: int, channels: int, pixels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, channels, pixels, pixels), dtype=np.uint8)
    mean, std = channel_statistics(TensorImages(torch.from_numpy(images)))
    values = images.transpose(1, 0, 2, 3).reshape(channels, -1).astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(std, values.std(1), rtol=1e-12)


def test_statistics_do_not_cancel() -> None:
    """One pixel of a million differs: the textbook formula in float32 gives a negative variance."""
    images = torch.full((1000, 1, 32, 32), 255, dtype=torch.uint8)
    images[500, 0, 3, 4] = 254
    ((mean,), (std,)) = channel_statistics(TensorImages(images))
    count = images.numel()
    assert mean == pytest.approx(1 - 1 / (255 * count), rel=1e-15)
    assert std == pytest.approx((1 / count - 1 / count**2) ** 0.5 / 255, rel=1e-12)


FOUND = ((0.5, 0.6), (0.1, 0.2))


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (None, None, FOUND),
        (None, [0.3, 0.3], FOUND),  # a std belongs to its mean
        ([0.0, 0], None, ((0.0, 0.0), (0.1, 0.2))),
        ([0.0, 0], [1, 2], ((0.0, 0.0), (1.0, 2.0))),
    ],
)
def test_blank_mean_or_std_are_filled_in(
    mean: list[float] | None, std: list[float] | None, expected: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    assert normalization(ImageRequest(mean=mean, std=std), FOUND, channels=2) == expected


def test_a_constant_channel_needs_a_std() -> None:
    found = channel_statistics(TensorImages(torch.zeros(3, 1, 2, 2, dtype=torch.uint8)))
    assert found == ((0.0,), (0.0,))
    with pytest.raises(ValueError, match=r"data.std=\[0.0\]: must be positive \(a constant channel needs"):
        normalization(ImageRequest(), found, channels=1)
    assert normalization(ImageRequest(mean=[0.0], std=[1.0]), found, channels=1) == ((0.0,), (1.0,))


def test_fetched_images_are_copies() -> None:
    stored = torch.arange(16, dtype=torch.uint8).view(4, 1, 2, 2)
    fetched = TensorImages(stored).fetch(torch.tensor([2, 0, 2]))
    assert torch.equal(fetched, stored[[2, 0, 2]])
    fetched.zero_()
    assert int(stored.sum()) == 120
