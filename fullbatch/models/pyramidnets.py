"""Additive pyramidal residual networks (Han, Kim & Kim, 2017) for small images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.models.layers import SubsampledMean

ALPHAS = {110: (84, False), 272: (200, True)}
"""Depth -> total growth of the width, and whether blocks are bottlenecks, of the named networks."""
_FIRST_WIDTH, _STAGES, _EXPANSION = 16, 3, 4


class PyramidBlock(nn.Module):
    """shortcut(x) + branch(x).

    The branch has two 3x3 convolutions, or a 3x3 between two 1x1 convolutions (the bottleneck), with a norm before the
    first and after each; all norms but the first and the last are followed by ReLU. The shortcut is the identity,
    pooled by the stride and padded with channels of zeros.
    """

    def __init__(self, in_channels: int, width: int, bottleneck: bool, stride: int) -> None:
        super().__init__()
        basic = ((width, 3, stride), (width, 3, 1))
        narrow = ((width, 1, 1), (width, 3, stride), (_EXPANSION * width, 1, 1))
        self.bn1, channels = nn.BatchNorm2d(in_channels), in_channels
        for number, (out_channels, kernel, step) in enumerate(narrow if bottleneck else basic, start=1):
            self.add_module(f"conv{number}", nn.Conv2d(channels, out_channels, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{number + 1}", nn.BatchNorm2d(out_channels))
            channels = out_channels
        self.length, self.missing = number, channels - in_channels
        self.pool = nn.Identity() if stride == 1 else SubsampledMean(stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H/stride, W/stride]."""
        branch = self.bn1(inputs)
        for number in range(1, self.length + 1):
            branch = getattr(self, f"bn{number + 1}")(getattr(self, f"conv{number}")(branch))
            if number < self.length:
                branch = torch.relu(branch)
        return branch + F.pad(self.pool(inputs), (0, 0, 0, 0, 0, self.missing))


class PyramidNet(nn.Module):
    """A convolution, three stages of blocks of growing width, norm, ReLU, pooling, linear layer."""

    def __init__(self, channels: int, stages: list[nn.Sequential], features: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _FIRST_WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_FIRST_WIDTH)
        self.layer1, self.layer2, self.layer3 = stages
        self.bn_final = nn.BatchNorm2d(features)
        self.fc = nn.Linear(features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images [B, C, H, W] to outputs [B, classes]."""
        hidden = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(inputs)))))
        return self.fc(torch.relu(self.bn_final(hidden)).mean(dim=(2, 3)))


def build_pyramidnet(
    depth: int,
    *,
    channels: int,
    classes: int,
    pixels: int,
    alpha: int | None = None,
    bottleneck: bool | None = None,
) -> PyramidNet:
    """Build the network; options as in ``config/model``.

    The width is initially 16 and grows over all blocks by ``alpha``, in equal parts that are summed and rounded. By
    default ``alpha`` is 84 and ``bottleneck`` False; for depth 272 they are 200 and True. ``ValueError`` names an
    invalid option.
    """
    default_alpha, default_bottleneck = ALPHAS.get(depth, ALPHAS[110])
    alpha = default_alpha if alpha is None else alpha
    bottleneck = default_bottleneck if bottleneck is None else bottleneck
    layers = _STAGES * (3 if bottleneck else 2)
    length = (depth - 2) // layers
    if length < 1 or depth != layers * length + 2:
        kind = "bottleneck=True" if bottleneck else "bottleneck=False"
        raise ValueError(f"depth={depth}: should be 2 plus a multiple of {layers} with {kind}; known: 110, 272")
    if alpha < 0:
        raise ValueError(f"alpha={alpha}: should be at least 0")
    stages, in_channels, width = [], _FIRST_WIDTH, float(_FIRST_WIDTH)
    for stage in range(_STAGES):
        blocks = []
        for index in range(length):
            width += alpha / (_STAGES * length)
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(PyramidBlock(in_channels, round(width), bottleneck, stride))
            in_channels = round(width) * (_EXPANSION if bottleneck else 1)
        stages.append(nn.Sequential(*blocks))
    model = PyramidNet(channels, stages, in_channels, classes)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # normal(0, sqrt(2 / (k k out)))
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
