"""Densely connected networks (Huang, Liu, van der Maaten & Weinberger, 2017), variant BC, names as in torchvision."""

from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from fullbatch.models.layers import (
    LayerKinds,
    activation_named,
    check_pixels,
    convolution_named,
    normalization_named,
    one_of,
)
from fullbatch.tensors import preserved

DEPTHS: dict[int, tuple[int, tuple[int, ...], int]] = {
    121: (32, (6, 12, 24, 16), 64),
    161: (48, (6, 12, 36, 24), 96),
    169: (32, (6, 12, 32, 32), 64),
    201: (32, (6, 12, 48, 32), 64),
}
"""Depth -> growth (channels that each layer adds), layers of each dense block, channels of the stem."""
_SHRINKAGE = 2**3  # by the transitions, after the stem


@dataclass(frozen=True)
class DenseNetKinds(LayerKinds):
    """The kinds of layers in a network, with the width of its bottlenecks, its dropout and its use of memory."""

    bn_size: int
    drop_rate: float
    memory_efficient: bool


class DenseLayer(nn.Module):
    """Norm, activation, 1x1 convolution to ``bn_size * growth`` channels; then the same with 3x3 to ``growth``."""

    def __init__(self, kinds: DenseNetKinds, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = kinds.norm(in_channels), kinds.activation()
        self.conv1 = kinds.conv(in_channels, kinds.bn_size * growth, 1)
        self.norm2, self.relu2 = kinds.norm(kinds.bn_size * growth), kinds.activation()
        self.conv2 = kinds.conv(kinds.bn_size * growth, growth, 3)
        self.drop = nn.Dropout(kinds.drop_rate)
        self.memory_efficient = kinds.memory_efficient

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the features of all previous layers, each [B, C_i, H, W], to [B, growth, H, W]."""
        if self.memory_efficient:
            narrow = self._checkpointed(features)
        else:
            narrow = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.drop(self.conv2(self.relu2(self.norm2(narrow))))

    def _checkpointed(self, features: list[Tensor]) -> Tensor:
        """Recompute the wide part in the backward pass instead of keeping it (Pleiss et al., 2017).

        The recomputation uses the parameters of the first computation, which may no longer be those of the module
        (forward mode evaluates at dual numbers), and does not update batch norm statistics again.
        """
        wide = nn.Sequential(self.norm1, self.relu1, self.conv1)
        parameters: dict[str, Tensor] = dict(wide.named_parameters())
        buffers, calls = list(wide.buffers()), count()

        def evaluate(*inputs: Tensor) -> Tensor:
            with nullcontext() if next(calls) == 0 else preserved(buffers):
                output: Tensor = functional_call(wide, parameters, (torch.cat(inputs, 1),))
                return output

        result: Tensor = checkpoint(evaluate, *features, use_reentrant=False, preserve_rng_state=False)
        return result


class DenseBlock(nn.Module):
    """Layers that each take the features of all previous layers."""

    def __init__(self, kinds: DenseNetKinds, in_channels: int, growth: int, length: int) -> None:
        super().__init__()
        for index in range(length):
            self.add_module(f"denselayer{index + 1}", DenseLayer(kinds, in_channels + index * growth, growth))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C + length * growth, H, W]."""
        features = [inputs]
        for layer in self.children():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Stem, dense blocks with transitions that halve channels and size, norm, pooling, linear layer."""

    def __init__(self, features: nn.Sequential, nonlin: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.features, self.nonlin = features, nonlin
        self.classifier = nn.Linear(channels, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images [B, C, H, W] to outputs [B, classes]."""
        return self.classifier(self.nonlin(self.features(inputs)).mean(dim=(2, 3)))


def build_densenet(
    depth: int,
    *,
    channels: int,
    classes: int,
    pixels: int,
    stem: str = "CIFAR",
    convolution: str = "Standard",
    nonlin_fn: str = "ReLU",
    normalization: str = "BatchNorm2d",
    bn_size: int = 4,
    memory_efficient: bool = False,
    drop_rate: float = 0.0,
) -> DenseNet:
    """Build the network; options as in ``config/model``. ``ValueError`` names an unknown or invalid option."""
    if depth not in DEPTHS:
        raise ValueError(f"depth={depth}: unknown; known: {', '.join(map(str, DEPTHS))}")
    if bn_size < 1:
        raise ValueError(f"bn_size={bn_size}: should be at least 1")
    growth, lengths, width = DEPTHS[depth]
    stem = one_of("stem", stem, ("CIFAR", "standard", "efficient"))
    kinds = DenseNetKinds(
        convolution_named(convolution),
        activation_named(nonlin_fn),
        normalization_named(normalization),
        bn_size,
        drop_rate,
        memory_efficient,
    )
    smallest = (pixels if stem == "cifar" else -(-pixels // 4)) // _SHRINKAGE
    check_pixels(pixels, smallest, stem, convolution, normalization)
    modules = _stem(stem, channels, width, kinds)
    for number, length in enumerate(lengths, start=1):
        modules[f"denseblock{number}"] = DenseBlock(kinds, width, growth, length)
        width += length * growth
        if number < len(lengths):
            transition: OrderedDict[str, nn.Module] = OrderedDict(norm=kinds.norm(width), relu=kinds.activation())
            transition |= {"conv": kinds.conv(width, width // 2, 1), "pool": nn.AvgPool2d(2)}
            modules[f"transition{number}"] = nn.Sequential(transition)
            width //= 2
    modules[f"norm{len(lengths) + 1}"] = kinds.norm(width)
    model = DenseNet(nn.Sequential(modules), kinds.activation(), width, classes)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.zeros_(model.classifier.bias)
    return model


def _stem(name: str, channels: int, width: int, kinds: DenseNetKinds) -> "OrderedDict[str, nn.Module]":
    """Return a convolution, or for large images convolutions with norms and activations, and pooling."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    kernels = {"cifar": (3,), "standard": (7,), "efficient": (3, 3, 3)}[name]
    for index, kernel in enumerate(kernels):
        stride = 2 if index == 0 and name != "cifar" else 1
        modules[f"conv{index}"] = kinds.conv(channels if index == 0 else width, width, kernel, stride)
        if name != "cifar":
            modules[f"norm{index}"], modules[f"relu{index}"] = kinds.norm(width), kinds.activation()
    if name != "cifar":
        modules["pool0"] = nn.MaxPool2d(3, stride=2, padding=1)
    return modules
