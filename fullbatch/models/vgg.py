"""Plain convolutional networks (Simonyan & Zisserman, 2015) with a norm after each convolution."""

from torch import Tensor, nn

from fullbatch.models.layers import activation_named, convolution_named, normalization_named, one_of

DEPTHS: dict[int, tuple[tuple[int, ...], ...]] = {
    11: ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    13: ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    16: ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}
"""Depth -> channels of the convolutions before each max pooling (configurations A, B, D, E)."""
HEADS = {"cifar": 1, "tinyimagenet": 2, "imagenet": 7}
"""Head -> side of the feature map that the classifier takes; larger maps are averaged to it."""
HIDDEN = 4096


class VGG(nn.Module):
    """Convolutions and max poolings, then a classifier on the flattened feature map."""

    def __init__(self, features: nn.Sequential, pool: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features, self.pool, self.classifier = features, pool, classifier

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images [B, C, H, W] to outputs [B, classes]."""
        return self.classifier(self.pool(self.features(inputs)))


def build_vgg(
    depth: int,
    *,
    channels: int,
    classes: int,
    pixels: int,
    head: str = "CIFAR",
    convolution: str = "Standard",
    nonlin_fn: str = "ReLU",
    normalization: str = "BatchNorm2d",
    drop_rate: float = 0.0,
    classical_weight_init: bool = True,
) -> VGG:
    """Build the network; options as in ``config/model``.

    The head ``CIFAR`` is a linear layer on the mean of each channel, ``TinyImageNet`` one on a map of 2x2; ``ImageNet``
    has two hidden layers of 4096 on a map of 7x7. Dropout precedes each linear layer, in the ImageNet head the last
    two. ``ValueError`` names an unknown or invalid option.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth={depth}: unknown; known: {', '.join(map(str, DEPTHS))}")
    side = HEADS[one_of("head", head, ("CIFAR", "TinyImageNet", "ImageNet"))]
    halvings = len(DEPTHS[depth])
    if pixels < 2**halvings:
        raise ValueError(f"images of {pixels} pixels cannot be halved {halvings} times; needs {2**halvings} pixels")
    conv, nonlin, norm = convolution_named(convolution), activation_named(nonlin_fn), normalization_named(normalization)
    modules: list[nn.Module] = []
    for widths in DEPTHS[depth]:
        for width in widths:
            modules += [conv(channels, width, 3, stride=1, padding=1, bias=True), norm(width), nonlin()]
            channels = width
        modules.append(nn.MaxPool2d(2))
    features = channels * side**2
    classifier: nn.Module = nn.Linear(features, classes)
    pool = [nn.AdaptiveAvgPool2d(side), nn.Flatten()]
    if side == HEADS["imagenet"]:
        hidden = [nn.Linear(features, HIDDEN), nonlin(), nn.Dropout(drop_rate), nn.Linear(HIDDEN, HIDDEN), nonlin()]
        classifier = nn.Sequential(*hidden, nn.Dropout(drop_rate), nn.Linear(HIDDEN, classes))
    elif drop_rate:
        pool.append(nn.Dropout(drop_rate))
    model = VGG(nn.Sequential(*modules), nn.Sequential(*pool), classifier)
    if classical_weight_init:
        _initialize(model)
    return model


def _initialize(model: VGG) -> None:
    """Initialize convolutions (Kaiming normal, fan out), linear weights (normal(0, 0.01)) and biases (0)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
