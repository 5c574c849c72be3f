"""Residual networks (He, Zhang, Ren & Sun, 2016), for small and for large images."""

from dataclasses import dataclass

from torch import Tensor, nn

from fullbatch.models.layers import (
    LayerKinds,
    SkipInit,
    SubsampledMean,
    activation_named,
    check_pixels,
    convolution_named,
    normalization_named,
    one_of,
)

BASIC, BOTTLENECK = 1, 4  # expansion: channels of a block's output / channels inside the block
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
"""Depth -> expansion, blocks of each stage."""
STEMS = {"cifar": 1, "standard": 4, "efficient": 4}
"""Stem -> side of the image / side of its output."""


@dataclass(frozen=True)
class ResNetKinds(LayerKinds):
    """The kinds of layers in a network, with the kind of its shortcuts; without a normalization it uses SkipInit."""

    downsample: str

    def shortcut(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        """Return the shortcut A, B or C if width or size change, else the identity."""
        if stride == 1 and in_channels == out_channels:
            return nn.Identity()
        if self.downsample == "a":
            return nn.Sequential(self.conv(in_channels, out_channels, 1, stride))
        if self.downsample == "b":
            return nn.Sequential(self.conv(in_channels, out_channels, 1, stride), self.norm(out_channels))
        pooled = nn.Identity() if stride == 1 else SubsampledMean(stride)
        return nn.Sequential(pooled, self.conv(in_channels, out_channels, 1), self.norm(out_channels))


class ResidualBlock(nn.Module):
    """activation(shortcut(x) + branch(x)).

    The branch has two 3x3 convolutions, or a 3x3 between two 1x1 convolutions (the bottleneck). Each is followed by a
    norm, and all but the last by an activation. The first 3x3 has the stride.
    """

    def __init__(self, kinds: ResNetKinds, in_channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        basic = ((width, 3, stride), (width, 3, 1))
        bottleneck = ((width, 1, 1), (width, 3, stride), (expansion * width, 1, 1))
        channels = in_channels
        for number, (out_channels, kernel, step) in enumerate(basic if expansion == BASIC else bottleneck, start=1):
            self.add_module(f"conv{number}", kinds.conv(channels, out_channels, kernel, step))
            if kinds.normalization is not None:
                self.add_module(f"bn{number}", kinds.norm(out_channels))
            channels = out_channels
        self.downsample = kinds.shortcut(in_channels, channels, stride)
        self.nonlin = kinds.activation()
        self.length = number

    @property
    def last_norm(self) -> nn.Module | None:
        """The last normalization of the branch."""
        return getattr(self, f"bn{self.length}", None)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H/stride, W/stride]."""
        branch = inputs
        for number in range(1, self.length + 1):
            branch = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(branch))
            if number < self.length:
                branch = self.nonlin(branch)
        return self.nonlin(branch + self.downsample(inputs))


class SkipInitBlock(ResidualBlock):
    """shortcut(x) + 0.2 s branch(x), s initially 0, without norms; activations precede the convolutions."""

    def __init__(self, kinds: ResNetKinds, in_channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__(kinds, in_channels, width, expansion, stride)
        self.skip = SkipInit()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H/stride, W/stride]."""
        branch = inputs
        for number in range(1, self.length + 1):
            branch = getattr(self, f"conv{number}")(self.nonlin(branch))
        return self.skip(branch) + self.downsample(inputs)


class ResNet(nn.Module):
    """Stem, stages of residual blocks that halve the size and double the width, average pooling, linear layer."""

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

    ``width`` is that of the first stage, by default 64, or 16 with three stages; ``downsample`` is C by default, or B
    for depth 20. ``ValueError`` names an unknown or invalid option.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth={depth}: unknown; known: {', '.join(map(str, sorted(DEPTHS)))}")
    expansion, lengths = DEPTHS[depth]
    stem = one_of("stem", stem, ("CIFAR", "standard", "efficient"))
    shortcut = ("B" if depth == 20 else "C") if downsample is None else downsample
    kinds = ResNetKinds(
        convolution_named(convolution),
        activation_named(nonlin_fn),
        None if normalization.lower() == "skipinit" else normalization_named(normalization),
        one_of("downsample", shortcut, ("A", "B", "C")),
    )
    smallest = -(-pixels // (STEMS[stem] * 2 ** (len(lengths) - 1)))
    check_pixels(pixels, smallest, stem, convolution, normalization)
    if width is None:
        width = 64 if len(lengths) == 4 else 16
    elif width < 1:
        raise ValueError(f"width={width}: should be at least 1")
    layers = _stages(kinds, width, expansion, lengths)
    head = kinds.activation() if kinds.normalization is None else nn.Identity()
    features = expansion * width * 2 ** (len(lengths) - 1)
    model = ResNet(_stem(stem, channels, width, kinds), layers, head, features, classes)
    _initialize(model, one_of("initialization", initialization, ("default", "skip-residual")))
    return model


def _stem(name: str, channels: int, width: int, kinds: ResNetKinds) -> nn.Sequential:
    """Return convolutions, each with a norm and an activation, and pooling for large images.

    The last convolution has no activation if the blocks start with one.
    """
    convolutions = {
        "cifar": [(width, 3, 1)],
        "standard": [(width, 7, 2)],
        "efficient": [(width, 3, 2), (width, 3, 1), (width, 3, 1)],
    }[name]
    modules: list[nn.Module] = []
    for out_channels, kernel, stride in convolutions:
        modules += [kinds.conv(channels, out_channels, kernel, stride), kinds.norm(out_channels), kinds.activation()]
        channels = out_channels
    if kinds.normalization is None:
        modules.pop()
    if name != "cifar":
        modules.append(nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(*modules)


def _stages(kinds: ResNetKinds, width: int, expansion: int, lengths: tuple[int, ...]) -> nn.Sequential:
    block = SkipInitBlock if kinds.normalization is None else ResidualBlock
    stages, in_channels = [], width
    for stage, length in enumerate(lengths):
        blocks = []
        for index in range(length):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(block(kinds, in_channels, width * 2**stage, expansion, stride))
            in_channels = expansion * width * 2**stage
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages)


def _initialize(model: ResNet, initialization: str) -> None:
    """Initialize convolutions (Kaiming normal, fan out) and biases (0); skip-residual: last norm of each branch 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if initialization == "skip-residual":
        for block in model.modules():
            if isinstance(block, ResidualBlock):
                weight = getattr(block.last_norm, "weight", None)
                if weight is None:
                    raise ValueError("initialization=skip-residual: needs a normalization with weights that start at 0")
                nn.init.zeros_(weight)
