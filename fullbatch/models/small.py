"""Small networks of studies of the training dynamics: fully connected and convolutional."""

from torch import nn

from fullbatch.models.layers import activation_named, one_of


def build_mlp(
    *, channels: int, classes: int, pixels: int, width: int = 200, depth: int = 2, nonlin_fn: str = "Tanh"
) -> nn.Module:
    """Build ``depth`` hidden layers of ``width`` units on the flattened images, and a linear layer.

    Maps [B, channels, pixels, pixels] to [B, classes]. ``nonlin_fn`` is an activation of ``torch.nn``.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    size = channels * pixels * pixels
    for _ in range(depth):
        layers += [nn.Linear(size, width), activation_named(nonlin_fn)()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, classes))


def build_cnn(
    *,
    channels: int,
    classes: int,
    pixels: int,
    width: int = 32,
    depth: int = 2,
    nonlin_fn: str = "ReLU",
    pooling: str = "max",
) -> nn.Module:
    """Build ``depth`` convolutions of 3x3 with ``width`` channels, each with a pooling of 2x2, and a linear layer.

    Maps [B, channels, pixels, pixels] to [B, classes]. ``pooling`` is max or average.

    Raises:
        ValueError: the images are too small for so many poolings.
    """
    pool = nn.MaxPool2d if one_of("pooling", pooling, ("max", "average")) == "max" else nn.AvgPool2d
    if pixels >> depth < 1:
        raise ValueError(f"depth={depth}: {pixels} pixels can be halved {pixels.bit_length() - 1} times")
    layers: list[nn.Module] = []
    for number in range(depth):
        convolution = nn.Conv2d(width if number else channels, width, 3, padding=1)
        layers += [convolution, activation_named(nonlin_fn)(), pool(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (pixels >> depth) ** 2, classes))
