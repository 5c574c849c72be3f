"""Tiny models and data in float64, and uneven ways to cut them, for the laws that hold for all of them."""

import torch
from torch import Tensor, nn

CLASSES, SAMPLES = 3, 33


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, CLASSES))


def tanh_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.GELU(), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(48, CLASSES)
    )


def dropped_out() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.SiLU(), nn.Dropout(0.4), nn.Linear(6, CLASSES))


def batch_normalized() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(12, CLASSES)
    )


WITHOUT_BATCH_STATISTICS = {"linear": linear, "tanh": tanh_network, "convolutional": convolutional}
RANDOM_AND_NORMALIZED = {"dropout": dropped_out, "batchnorm": batch_normalized}
MODELS = WITHOUT_BATCH_STATISTICS | RANDOM_AND_NORMALIZED


class AddedParameters(nn.Module):
    """Autograd gives its two biases one gradient in one memory, and its scale one number, expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = tanh_network()
        self.biases = nn.ParameterList(torch.randn(2, CLASSES).unbind())
        self.scale = nn.Parameter(torch.rand(3))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs) * self.scale.sum() + (self.biases[0] + self.biases[1])
        return outputs


class TiedParameters(nn.Module):
    """Goes through one module twice, which is registered twice, and has one parameter in two other modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 4)
        self.again = self.twice = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.twice.weight
        self.last = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.first(inputs.flatten(1))
        for layer in (self.twice, self.again, self.tied, self.last):
            outputs = layer(outputs.tanh())
        return outputs


SHARING = {"added": AddedParameters, "tied": TiedParameters}
"""Models of which gradients, parameters or modules are shared."""

PARTITIONS = {
    "ones": [1] * SAMPLES,
    "sevens": [7, 7, 7, 7, 5],
    "ragged": [32, 1],
    "whole": [SAMPLES],
    "uneven": [3, 11, 1, 16, 2],
}


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return (MODELS | SHARING)[name]().double()


def samples(num: int = SAMPLES, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num, 2, 4, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(CLASSES, (num,), generator=generator)


def cut(inputs: Tensor, labels: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(sizes), labels.split(sizes), strict=True))
