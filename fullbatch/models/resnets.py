"""Residual networks (He, Zhang, Ren & Sun, 2016), for small and for large images."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fullbatch.models.layers import (
    Convolution,
    Normalization,
    SkipInit,
    SubsampledMean,
    activation_named,
    convolution_named,
    normalization_named,
    one_of,
    refuse_small_images,
    refuse_wide_padding,
)

BASIC, BOTTLENECK = 1, 4  # how many times wider a block's output is than its inside
DEPTHS: dict[int, tuple[int, tuple[int, ...]]] = {
    18: (BASIC, (2, 2, 2, 2)),
    34: (BASIC, (3, 4, 6, 3)),
    50: (BOTTLENECK, (3, 4, 6, 3)),
    101: (BOTTLENECK, (3, 4, 23, 3)),
    152: (BOTTLENECK, (3, 8, 36, 3)),
    20: (BASIC, (3, 3, 3)),
    32: (BASIC, (5, 5, 5)),
    56: (BASIC, (9, 9, 9)),
    110: (BASIC, (18, 18, 18)),
}
"""Depth -> kind of block, blocks of each stage."""
STEMS = {"cifar": 1, "standard": 4, "efficient": 4}
"""Stem -> how many times smaller its output is than the image."""


@dataclass(frozen=True)
class Parts:
    """What the blocks of a network are made of; ``normalization`` None is SkipInit's recipe."""

    convolution: Convolution
    activation: Callable[[], nn.Module]
    normalization: Normalization | None
    downsample: str

    def conv(self, inside: int, outside: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        """Return a convolution that keeps the image's size, up to the stride."""
        bias = self.normalization is None
        return self.convolution(inside, outside, kernel, stride=stride, padding=kernel // 2, bias=bias)

    def norm(self, channels: int) -> nn.Module:
        """Return a normalization."""
        return nn.Identity() if self.normalization is None else self.normalization(channels)

    def shortcut(self, inside: int, outside: int, stride: int) -> nn.Module:
        """Return the shortcut A, B or C where width or size change, else the identity."""
        if stride == 1 and inside == outside:
            return nn.Identity()
        if self.downsample == "a":
            return nn.Sequential(self.conv(inside, outside, 1, stride))
        if self.downsample == "b":
            return nn.Sequential(self.conv(inside, outside, 1, stride), self.norm(outside))
        pooled = nn.Identity() if stride == 1 else SubsampledMean(stride)
        return nn.Sequential(pooled, self.conv(inside, outside, 1), self.norm(outside))


class Block(nn.Module):
    """A residual block: shortcut(x) + branch(x), then the activation.

    The branch is two 3x3 convolutions, or three with a 3x3 between two 1x1 (the bottleneck), each normalized and all
    but the last activated. The stride is at the first 3x3.
    """

    def __init__(self, parts: Parts, inside: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        basic = ((width, 3, stride), (width, 3, 1))
        bottleneck = ((width, 1, 1), (width, 3, stride), (expansion * width, 1, 1))
        channels = inside
        for number, (outside, kernel, step) in enumerate(basic if expansion == BASIC else bottleneck, start=1):
            self.add_module(f"conv{number}", parts.conv(channels, outside, kernel, step))
            if parts.normalization is not None:
                self.add_module(f"bn{number}", parts.norm(outside))
            channels = outside
        self.downsample = parts.shortcut(inside, channels, stride)
        self.nonlin = parts.activation()
        self.length = number

    @property
    def last_norm(self) -> nn.Module | None:
        """The normalization that ends the branch."""
        return getattr(self, f"bn{self.length}", None)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H/stride, W/stride]."""
        branch = inputs
        for number in range(1, self.length + 1):
            branch = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(branch))
            if number < self.length:
                branch = self.nonlin(branch)
        return self.nonlin(branch + self.downsample(inputs))


class SkipInitBlock(Block):
    """A block without normalization: x + 0.2 s branch(x), s from 0; convolutions have biases and follow activations."""

    def __init__(self, parts: Parts, inside: int, width: int, expansion: int, stride: int) -> None:
        super().__init__(parts, inside, width, expansion, stride)
        self.skip = SkipInit()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H/stride, W/stride]."""
        branch = inputs
        for number in range(1, self.length + 1):
            branch = getattr(self, f"conv{number}")(self.nonlin(branch))
        return self.skip(branch) + self.downsample(inputs)


class ResNet(nn.Module):
    """Stem, stages of residual blocks that halve the image and double the width, average pooling, linear layer."""

    def __init__(
        self, stem: nn.Sequential, layers: nn.Sequential, head: nn.Module, features: int, classes: int
    ) -> None:
        super().__init__()
        self.stem, self.layers, self.head = stem, layers, head
        self.fc = nn.Linear(features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images [B, C, H, W] to outputs [B, classes]."""
        return self.fc(self.head(self.layers(self.stem(inputs))).mean(dim=(2, 3)))


def build_resnet(
    depth: int,
    *,
    channels: int,
    classes: int,
    pixels: int,
    width: int | None = None,
    stem: str = "CIFAR",
    convolution: str = "Standard",
    nonlin_fn: str = "ReLU",
    normalization: str = "BatchNorm2d",
    downsample: str | None = None,
    initialization: str = "default",
) -> ResNet:
    """Build the network; options as in ``config/model``.

    ``width`` is the first stage's, by default 64, or 16 for networks of three stages; ``downsample`` is by default C,
    or B for depth 20. ``ValueError`` names an option that is unknown or does not fit.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth={depth}: unknown; known: {', '.join(map(str, sorted(DEPTHS)))}")
    expansion, lengths = DEPTHS[depth]
    stem = one_of("stem", stem, ("CIFAR", "standard", "efficient"))
    shortcut = ("B" if depth == 20 else "C") if downsample is None else downsample
    parts = Parts(
        convolution_named(convolution),
        activation_named(nonlin_fn),
        None if normalization.lower() == "skipinit" else normalization_named(normalization),
        one_of("downsample", shortcut, ("A", "B", "C")),
    )
    refuse_small_images(pixels, -(-pixels // (STEMS[stem] * 2 ** (len(lengths) - 1))), convolution, normalization)
    refuse_wide_padding(pixels, stem, convolution)
    width = _first_width(width, len(lengths))
    layers = _stages(parts, width, expansion, lengths)
    preactivated = parts.normalization is None
    head = parts.activation() if preactivated else nn.Identity()
    features = expansion * width * 2 ** (len(lengths) - 1)
    model = ResNet(_stem(stem, channels, width, parts), layers, head, features, classes)
    _initialize(model, one_of("initialization", initialization, ("default", "skip-residual")))
    return model


def _first_width(width: int | None, stages: int) -> int:
    if width is None:
        return 64 if stages == 4 else 16
    if width < 1:
        raise ValueError(f"width={width}: should be at least 1")
    return width


def _stem(name: str, channels: int, width: int, parts: Parts) -> nn.Sequential:
    """Return convolutions, each normalized and activated, and pooling for large images.

    Before blocks that start with an activation, the last convolution has none.
    """
    convolutions = {
        "cifar": [(width, 3, 1)],
        "standard": [(width, 7, 2)],
        "efficient": [(width, 3, 2), (width, 3, 1), (width, 3, 1)],
    }[name]
    modules: list[nn.Module] = []
    for outside, kernel, stride in convolutions:
        modules += [parts.conv(channels, outside, kernel, stride), parts.norm(outside), parts.activation()]
        channels = outside
    if parts.normalization is None:
        modules.pop()
    if name != "cifar":
        modules.append(nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(*modules)


def _stages(parts: Parts, width: int, expansion: int, lengths: tuple[int, ...]) -> nn.Sequential:
    block = SkipInitBlock if parts.normalization is None else Block
    stages, inside = [], width
    for stage, length in enumerate(lengths):
        blocks = []
        for index in range(length):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(block(parts, inside, width * 2**stage, expansion, stride))
            inside = expansion * width * 2**stage
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages)


def _initialize(model: ResNet, initialization: str) -> None:
    """Kaiming-normal fan-out convolutions, biases 0, norms the identity; skip-residual: branches start at 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if initialization == "skip-residual":
        for block in model.modules():
            if isinstance(block, Block):
                weight = getattr(block.last_norm, "weight", None)
                if weight is None:
                    raise ValueError("initialization=skip-residual: needs a normalization with weights, to start at 0")
                nn.init.zeros_(weight)
