"""Densely connected networks (Huang, Liu, van der Maaten & Weinberger, 2017; the variant BC), torchvision's names."""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from fullbatch.models.layers import (
    Convolution,
    Normalization,
    activation_named,
    convolution_named,
    normalization_named,
    one_of,
    refuse_small_images,
    refuse_wide_padding,
)
from fullbatch.tensors import preserved

DEPTHS: dict[int, tuple[int, tuple[int, ...], int]] = {
    121: (32, (6, 12, 24, 16), 64),
    161: (48, (6, 12, 36, 24), 96),
    169: (32, (6, 12, 32, 32), 64),
    201: (32, (6, 12, 48, 32), 64),
}
"""Depth -> growth (channels that a layer adds), layers of each dense block, channels of the stem."""
_TRANSITIONS = 2**3  # the image shrinks by this after the stem


@dataclass(frozen=True)
class Parts:
    """What the layers of a network are made of."""

    convolution: Convolution
    activation: Callable[[], nn.Module]
    normalization: Normalization
    bn_size: int
    drop_rate: float
    memory_efficient: bool

    def conv(self, inside: int, outside: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        """Return a convolution without bias that keeps the image's size, up to the stride."""
        return self.convolution(inside, outside, kernel, stride=stride, padding=kernel // 2, bias=False)


class DenseLayer(nn.Module):
    """Adds ``growth`` channels: norm, activation, 1x1 convolution to ``bn_size * growth``, then the same with 3x3."""

    def __init__(self, parts: Parts, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = parts.normalization(inside), parts.activation()
        self.conv1 = parts.conv(inside, parts.bn_size * growth, 1)
        self.norm2, self.relu2 = parts.normalization(parts.bn_size * growth), parts.activation()
        self.conv2 = parts.conv(parts.bn_size * growth, growth, 3)
        self.drop = nn.Dropout(parts.drop_rate)
        self.memory_efficient = parts.memory_efficient

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the features of all layers before, [B, C_i, H, W] each, to [B, growth, H, W]."""
        narrow = self._recomputed(features) if self.memory_efficient else self._bottleneck(torch.cat(features, 1))
        return self.drop(self.conv2(self.relu2(self.norm2(narrow))))

    def _bottleneck(self, features: Tensor) -> Tensor:
        return self.conv1(self.relu1(self.norm1(features)))

    def _recomputed(self, features: list[Tensor]) -> Tensor:
        """Compute the wide part again in the backward pass instead of keeping it (Pleiss et al., 2017).

        The second time with the first time's parameters, which need not be the module's any more (forward mode
        evaluates at dual numbers), and without moving batch-norm statistics again.
        """
        wide = nn.Sequential(self.norm1, self.relu1, self.conv1)
        parameters: dict[str, Tensor] = dict(wide.named_parameters())
        buffers, times = list(wide.buffers()), count()

        def evaluate(*inputs: Tensor) -> Tensor:
            with nullcontext() if next(times) == 0 else preserved(buffers):
                output: Tensor = functional_call(wide, parameters, (torch.cat(inputs, 1),))
                return output

        result: Tensor = checkpoint(evaluate, *features, use_reentrant=False, preserve_rng_state=False)
        return result


class DenseBlock(nn.Module):
    """Layers that each see the features of all before them."""

    def __init__(self, parts: Parts, inside: int, growth: int, length: int) -> None:
        super().__init__()
        for index in range(length):
            self.add_module(f"denselayer{index + 1}", DenseLayer(parts, inside + index * growth, growth))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C + length * growth, H, W]."""
        features = [inputs]
        for layer in self.children():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Stem, dense blocks with transitions that halve channels and image, norm, pooling, linear layer."""

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
    """Build the network; options as in ``config/model``. ``ValueError`` names one that is unknown or does not fit."""
    if depth not in DEPTHS:
        raise ValueError(f"depth={depth}: unknown; known: {', '.join(map(str, DEPTHS))}")
    if bn_size < 1:
        raise ValueError(f"bn_size={bn_size}: should be at least 1")
    growth, lengths, width = DEPTHS[depth]
    stem = one_of("stem", stem, ("CIFAR", "standard", "efficient"))
    parts = Parts(
        convolution_named(convolution),
        activation_named(nonlin_fn),
        normalization_named(normalization),
        bn_size,
        drop_rate,
        memory_efficient,
    )
    smallest = (pixels if stem == "cifar" else -(-pixels // 4)) // _TRANSITIONS
    refuse_small_images(pixels, smallest, convolution, normalization)
    refuse_wide_padding(pixels, stem, convolution)
    modules = _stem(stem, channels, width, parts)
    for number, length in enumerate(lengths, start=1):
        modules[f"denseblock{number}"] = DenseBlock(parts, width, growth, length)
        width += length * growth
        if number < len(lengths):
            modules[f"transition{number}"] = _transition(parts, width)
            width //= 2
    modules[f"norm{len(lengths) + 1}"] = parts.normalization(width)
    model = DenseNet(nn.Sequential(modules), parts.activation(), width, classes)
    _initialize(model)
    return model


def _stem(name: str, channels: int, width: int, parts: Parts) -> "OrderedDict[str, nn.Module]":
    """Return a bare convolution, or for large images convolutions with norms and activations, then pooling."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    kernels = {"cifar": (3,), "standard": (7,), "efficient": (3, 3, 3)}[name]
    for index, kernel in enumerate(kernels):
        stride = 2 if index == 0 and name != "cifar" else 1
        modules[f"conv{index}"] = parts.conv(channels if index == 0 else width, width, kernel, stride)
        if name != "cifar":
            modules[f"norm{index}"], modules[f"relu{index}"] = parts.normalization(width), parts.activation()
    if name != "cifar":
        modules["pool0"] = nn.MaxPool2d(3, stride=2, padding=1)
    return modules


def _transition(parts: Parts, width: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=parts.normalization(width),
            relu=parts.activation(),
            conv=parts.conv(width, width // 2, 1),
            pool=nn.AvgPool2d(2),
        )
    )


def _initialize(model: DenseNet) -> None:
    """Kaiming-normal fan-in convolutions, norms the identity, the linear layer's bias 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.zeros_(model.classifier.bias)
