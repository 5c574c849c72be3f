"""Normalizer-free networks (Brock, De, Smith & Simonyan, 2021): standardized weights instead of batch norm.

Full-batch gradients of these networks do not depend on how the data are split into blocks.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.models.layers import one_of

VARIANTS = {"F0": 0.2, "F1": 0.3, "F2": 0.4, "F3": 0.4, "F4": 0.5, "F5": 0.5, "F6": 0.5, "F7": 0.5}
"""Variant -> dropout rate before the classifier; Fk has k + 1 times the blocks of F0."""
WIDTHS, LENGTHS, STRIDES = (256, 512, 1536, 1536), (1, 2, 6, 3), (1, 2, 2, 2)
STEMS = {"cifar": (1, 1, 1, 1), "imagenet": (2, 1, 1, 2)}
"""Stem -> strides of its 3x3 convolutions, which have no padding."""
_STEM_WIDTHS, _GROUP = (16, 32, 64, 128), 128


class ScaledActivation(nn.Module):
    """An activation times the factor that gives it variance 1 for standard normal inputs."""

    def __init__(self, function: Callable[[Tensor], Tensor], scale: float) -> None:
        super().__init__()
        self.function, self.scale = function, scale

    def forward(self, inputs: Tensor) -> Tensor:
        """Map elementwise."""
        return self.function(inputs) * self.scale


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "gelu": (F.gelu, 1.7015043497085571),
    "relu": (F.relu, 1.7139588594436646),
}


class ScaledConv2d(nn.Conv2d):
    """A convolution with filters (w - mean(w)) gain / sqrt(max(n var(w), 1e-4)), n their size, var unbiased."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding, groups=groups)
        self.gain = nn.Parameter(torch.ones(out_channels, 1, 1, 1))
        nn.init.xavier_normal_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the convolution of [B, C, H, W]."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        scale = self.gain * torch.rsqrt((variance * self.weight[0].numel()).clamp_min(1e-4))
        return self._conv_forward(inputs, (self.weight - mean) * scale, self.bias)


class SqueezeExcite(nn.Module):
    """One factor in (0, 1) per channel, computed from the means of the channels (Hu, Shen & Sun, 2018)."""

    def __init__(self, channels: int, ratio: float, activation: nn.Module) -> None:
        super().__init__()
        hidden = max(1, int(channels * ratio))
        self.linear, self.nonlin, self.linear_1 = nn.Linear(channels, hidden), activation, nn.Linear(hidden, channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [B, C, H, W] to factors [B, C, 1, 1]."""
        return torch.sigmoid(self.linear_1(self.nonlin(self.linear(inputs.mean(dim=(2, 3))))))[:, :, None, None]


class NFBlock(nn.Module):
    """x + alpha s branch(beta act(x)), s a learned scalar, initially 0; beta gives the branch's input variance 1.

    The branch is a 1x1 convolution to half the width, two 3x3 convolutions in groups of 128 channels, a 1x1 convolution
    to the width, and twice its squeeze-and-excite factors. If width or size change, the shortcut is a 1x1 convolution
    of the (pooled) input of the branch. ``drop_rate`` is the probability that a sample skips the branch in training
    (stochastic depth, not rescaled).
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        *,
        activation: nn.Module,
        alpha: float,
        beta: float,
        se_ratio: float,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.stride, self.drop_rate = alpha, beta, stride, drop_rate
        self.skip_gain = nn.Parameter(torch.zeros(()))
        narrow = width // 2
        groups = max(narrow // _GROUP, 1)
        self.conv0 = ScaledConv2d(in_channels, narrow, 1)
        self.conv1 = ScaledConv2d(narrow, narrow, 3, stride, padding=1, groups=groups)
        self.conv1b = ScaledConv2d(narrow, narrow, 3, padding=1, groups=groups)
        self.conv2 = ScaledConv2d(narrow, width, 1)
        self.conv_shortcut = ScaledConv2d(in_channels, width, 1) if stride > 1 or in_channels != width else None
        self.squeeze_excite = SqueezeExcite(width, se_ratio, activation)
        self.activation = activation

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H/stride, W/stride]."""
        hidden = self.activation(inputs) * self.beta
        # an odd side is padded, so that shortcut and branch have the same size
        pooled = hidden if self.stride == 1 else F.avg_pool2d(hidden, 2, padding=hidden.shape[-1] % 2)
        shortcut = inputs if self.conv_shortcut is None else self.conv_shortcut(pooled)
        branch = self.conv1(self.activation(self.conv0(hidden)))
        branch = self.conv2(self.activation(self.conv1b(self.activation(branch))))
        branch = branch * 2 * self.squeeze_excite(branch)
        if self.training and self.drop_rate > 0:
            branch = branch * (torch.rand(len(branch), 1, 1, 1, device=branch.device) >= self.drop_rate)
        return branch * self.alpha * self.skip_gain + shortcut


class NFNet(nn.Module):
    """Stem, blocks, a 1x1 convolution, mean over the image, linear layer."""

    def __init__(self, stem: nn.Module, body: nn.Module, activation: nn.Module, dropout: float, classes: int) -> None:
        super().__init__()
        self.stem, self.body = stem, body
        self.final_conv = ScaledConv2d(WIDTHS[-1], 2 * WIDTHS[-1], 1)
        self.activation, self.dropout = activation, nn.Dropout(dropout)
        self.linear = nn.Linear(2 * WIDTHS[-1], classes)
        nn.init.normal_(self.linear.weight, 0, 0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images [B, C, H, W] to outputs [B, classes]."""
        features = self.activation(self.final_conv(self.body(self.stem(inputs)))).mean(dim=(2, 3))
        return self.linear(self.dropout(features))


def build_nfnet(
    *,
    channels: int,
    classes: int,
    pixels: int,
    stem: str = "CIFAR",
    variant: str = "F0",
    stochdepth_rate: float = 0.0,
    alpha: float = 0.2,
    se_ratio: float = 0.5,
    nonlin: str = "gelu",
    use_dropout: bool = False,
) -> NFNet:
    """Build the network; options as in ``config/model``. ``ValueError`` names an unknown or invalid option."""
    function, scale = ACTIVATIONS[one_of("nonlin", nonlin, tuple(ACTIVATIONS))]
    variant = one_of("variant", variant, tuple(VARIANTS)).upper()
    strides = STEMS[one_of("stem", stem, ("CIFAR", "ImageNet"))]
    side = pixels
    for stride in strides:
        side = (side - 3) // stride + 1 if side >= 3 else 0
    if side < 1:
        raise ValueError(f"images of {pixels} pixels vanish in the stem {stem}, which has no padding")
    activation = ScaledActivation(function, scale)
    body = _body([length * (1 + int(variant[1:])) for length in LENGTHS], stochdepth_rate, activation, alpha, se_ratio)
    return NFNet(_stem(channels, strides, activation), body, activation, VARIANTS[variant] * use_dropout, classes)


def _stem(channels: int, strides: tuple[int, ...], activation: nn.Module) -> nn.Sequential:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (width, stride) in enumerate(zip(_STEM_WIDTHS, strides, strict=True)):
        modules[f"conv{index}"] = ScaledConv2d(channels, width, 3, stride)
        if index < len(strides) - 1:
            modules[f"act{index}"] = activation
        channels = width
    return nn.Sequential(modules)


def _body(
    lengths: list[int], stochdepth_rate: float, activation: nn.Module, alpha: float, se_ratio: float
) -> nn.Sequential:
    """Return the blocks, with beta from the standard deviation of their input, which each first block resets to 1."""
    blocks: list[nn.Module] = []
    in_channels, std = _STEM_WIDTHS[-1], 1.0
    for width, length, stage_stride in zip(WIDTHS, lengths, STRIDES, strict=True):
        for index in range(length):
            block = NFBlock(
                in_channels,
                width,
                stage_stride if index == 0 else 1,
                activation=activation,
                alpha=alpha,
                beta=1 / std,
                se_ratio=se_ratio,
                drop_rate=stochdepth_rate * len(blocks) / sum(lengths),
            )
            blocks.append(block)
            std = ((1.0 if index == 0 else std**2) + alpha**2) ** 0.5
            in_channels = width
    return nn.Sequential(*blocks)
