"""The average of the weights follows its recursion; integer buffers are copied."""

import pytest
import torch
from cases import build, samples
from torch.nn import functional as F

from fullbatch.optim.ema import ExponentialMovingAverage


def test_it_starts_as_a_copy_and_follows_its_recursion() -> None:
    model = build("batchnorm")
    average = ExponentialMovingAverage(model, 0.9)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(samples()[0]), samples()[1]).backward()
        optimizer.step()
        average.update(model)
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = 0.9 * expected[name] + 0.1 * value
            else:
                expected[name] = value.clone()
    averaged = average.model.state_dict()
    torch.testing.assert_close(dict(averaged), expected)
    assert not torch.equal(averaged["1.running_mean"], model.state_dict()["1.running_mean"])
    assert not any(p.requires_grad for p in average.model.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_momentum_is_between_0_and_1() -> None:
    for momentum in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"momentum={momentum}: must be between 0 and 1"):
            ExponentialMovingAverage(build("tanh"), momentum)
