"""Weight decay: which parameters decay, and the penalty whose gradient SGD follows."""

import pytest
import torch
from cases import build
from references import vector
from torch import nn

from fullbatch.optim.weight_decay import decay_penalty, parameter_groups


class WithGain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))
        self.again = nn.Parameter(torch.ones(4, 1))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def test_vectors_and_gains_are_exempt() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2), WithGain())
    decayed, exempt = parameter_groups(model, only_linear_layers=True)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p] for p in decayed["params"]} == {"0.weight", "2.weight", "3.again"}
    assert {names[p] for p in exempt["params"]} == {"0.bias", "1.weight", "1.bias", "2.bias", "3.gain"}
    (everything,) = parameter_groups(model, only_linear_layers=False)
    assert len(everything["params"]) == 8
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), only_linear_layers=True)) == 1


@pytest.mark.parametrize("only_linear_layers", [True, False])
def test_sgd_follows_the_gradient_of_the_penalty(only_linear_layers: bool) -> None:
    model = build("convolutional")
    groups = parameter_groups(model, only_linear_layers=only_linear_layers)
    optimizer = torch.optim.SGD(groups, lr=1.0, weight_decay=0.01)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    penalty = sum(
        group["weight_decay"] / 2 * p.square().sum() for group in optimizer.param_groups for p in group["params"]
    )
    torch.testing.assert_close(decay_penalty(optimizer), penalty.detach())
    expected = vector(parameters) - vector(
        torch.autograd.grad(penalty, parameters, materialize_grads=True, allow_unused=True)
    )
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(vector(parameters), expected)


def test_without_decay_the_penalty_is_zero() -> None:
    assert float(decay_penalty(torch.optim.SGD(build("tanh").parameters(), 0.1))) == 0
