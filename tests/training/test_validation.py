"""Validation: mirror images, recalibrated batch norm, and no trace."""

import pytest
import torch
from cases import build, samples
from fixed_blocks import FixedBlocks
from references import assert_no_trace, trace_of
from torch import nn
from torch.nn import functional as F

from fullbatch.training.validation import FlipAveraged, recalibrated_batchnorm, validate


def blocks(seed: int = 1) -> FixedBlocks:
    return FixedBlocks.cut(*samples(seed=seed), [20, 13])


def test_it_evaluates_in_evaluation_mode_and_leaves_no_trace() -> None:
    model = build("batchnorm")
    model[1].eval()
    model(samples()[0])
    before = trace_of(model)
    evaluation = validate(model, F.cross_entropy, blocks())
    assert_no_trace(model, before)
    assert model.training
    assert not model[1].training
    outputs = model.eval()(samples()[0])
    torch.testing.assert_close(evaluation.loss, F.cross_entropy(outputs, samples()[1]))
    assert float(evaluation.accuracy) == pytest.approx(float((outputs.argmax(1) == samples()[1]).double().mean()))


def test_flips_average_probabilities() -> None:
    model = build("convolutional").eval()
    inputs, labels = samples()
    probabilities = (model(inputs).softmax(1) + model(inputs.flip(-1)).softmax(1)) / 2
    evaluation = validate(model, F.cross_entropy, blocks(), flips=True)
    torch.testing.assert_close(evaluation.loss, F.nll_loss(probabilities.log(), labels))
    assert float(evaluation.accuracy) == pytest.approx(float((probabilities.argmax(1) == labels).double().mean()))
    torch.testing.assert_close(FlipAveraged(model)(inputs), FlipAveraged(model)(inputs.flip(-1)))
    assert not torch.allclose(evaluation.loss, validate(model, F.cross_entropy, blocks()).loss)


def test_recalibration_estimates_the_statistics_over_all_samples_weighted_by_size() -> None:
    model = build("batchnorm")
    features = model[0](samples()[0]).transpose(0, 1).flatten(1)
    parts = [model[0](block.inputs).transpose(0, 1).flatten(1) for block in blocks()]
    weights = [20 / 33, 13 / 33]
    before = trace_of(model)
    with recalibrated_batchnorm(model, blocks()):
        torch.testing.assert_close(model[1].running_mean, features.mean(1))
        variance = sum(w * part.var(1) for w, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(model[1].running_var, variance)
    assert_no_trace(model, before)
    assert model[1].momentum == 0.1


def test_recalibration_is_what_validation_sees() -> None:
    model = build("batchnorm")
    before = trace_of(model)
    evaluation = validate(model, F.cross_entropy, blocks(2), recalibration=blocks())
    assert_no_trace(model, before)
    with recalibrated_batchnorm(model, blocks()):
        inputs, labels = samples(seed=2)
        torch.testing.assert_close(evaluation.loss, F.cross_entropy(model.eval()(inputs), labels))
    assert not torch.allclose(evaluation.loss, validate(model, F.cross_entropy, blocks(2)).loss)


def test_recalibration_without_batch_norm_changes_nothing() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double()
    plain = validate(model, F.cross_entropy, blocks())
    assert torch.equal(plain.loss, validate(model, F.cross_entropy, blocks(), recalibration=blocks()).loss)
