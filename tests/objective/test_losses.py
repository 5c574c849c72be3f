"""Each loss equals its formula, written out sample by sample."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fullbatch.objective.losses import loss_function


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 5


def smoothed_losses(outputs: Tensor, labels: Tensor, smoothing: float) -> list[float]:
    losses = []
    for row, label in zip(outputs, labels.tolist(), strict=True):
        log_p = [float(x - torch.logsumexp(row, 0)) for x in row]
        target = [1 - smoothing if c == label else smoothing / (len(row) - 1) for c in range(len(row))]
        losses.append(-sum(t * lp for t, lp in zip(target, log_p, strict=True)))
    return losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_spreads_the_smoothing_over_the_other_classes(
    batch: tuple[Tensor, Tensor], smoothing: float
) -> None:
    losses = smoothed_losses(*batch, smoothing)
    assert float(loss_function(None, smoothing)(*batch)) == pytest.approx(sum(losses) / 12, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_modifications_reduce_the_losses_of_the_samples(batch: tuple[Tensor, Tensor], smoothing: float) -> None:
    outputs, labels = batch
    losses = smoothed_losses(outputs, labels, smoothing)
    wrong = (outputs.argmax(1) != labels).tolist()
    assert 0 < sum(wrong) < 12
    groups = [max(losses[start : start + 3]) for start in range(0, 12, 3)]
    for name, expected in {
        "incorrect-xent": sum(loss for loss, is_wrong in zip(losses, wrong, strict=True) if is_wrong) / 12,
        "batch-maxup": max(losses),
        "maxup-3": sum(groups) / 4,
        "Batch-MaxUp": max(losses),
    }.items():
        assert float(loss_function(name, smoothing)(outputs, labels)) == pytest.approx(expected, rel=1e-12)


def test_squared_is_half_the_squared_distance_to_the_one_hot_label(batch: tuple[Tensor, Tensor]) -> None:
    outputs, labels = batch
    expected = (outputs - F.one_hot(labels, 5)).square().sum() / 2 / 12
    torch.testing.assert_close(loss_function("squared")(outputs, labels), expected)


def test_confident_outputs_lose_what_the_smoothing_spread(batch: tuple[Tensor, Tensor]) -> None:
    outputs = F.one_hot(batch[1], 5).double() * 100
    assert float(loss_function(None, 0.1)(outputs, batch[1])) == pytest.approx(0.1 * 100, rel=1e-9)


@pytest.mark.parametrize("name", [None, "incorrect-xent", "squared"])
def test_half_precision_outputs_are_summed_in_single(batch: tuple[Tensor, Tensor], name: str | None) -> None:
    outputs, labels = batch
    low = loss_function(name, 0.1)(outputs.bfloat16(), labels)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), loss_function(name, 0.1)(outputs.bfloat16().double(), labels))


def test_uniform_outputs_lose_the_logarithm_of_the_classes() -> None:
    assert float(loss_function()(torch.zeros(4, 7), torch.arange(4))) == pytest.approx(math.log(7))


@pytest.mark.parametrize("name", ["hinge", "maxup", "maxup-0", "maxup--1"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*known: incorrect-xent, batch-maxup, squared, maxup-K"):
        loss_function(name)
