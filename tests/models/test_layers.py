"""Each layer compared with its formula."""

import pytest
import torch
from filling import inputs
from torch import nn
from torch.nn import functional as F

from fullbatch.models.layers import (
    SequentialGhostNorm,
    StandardizedConv2d,
    SubsampledMean,
    convolution_named,
    normalization_named,
)

IMAGES = inputs(4, 3, 16)


@pytest.mark.parametrize("name", ["circular", "reflect", "replicate"])
def test_convolutions_pad_by_their_mode(name: str) -> None:
    layer = convolution_named(name)(3, 4, 3, padding=1).double()
    padded = F.pad(IMAGES, (1, 1, 1, 1), mode=name)
    torch.testing.assert_close(layer(IMAGES), F.conv2d(padded, layer.weight, layer.bias))


def test_circular_convolutions_commute_with_shifts() -> None:
    layer = convolution_named("Circular")(3, 4, 3, padding=1).double()
    for shifts in ((1, 0), (0, 5), (7, 3)):
        torch.testing.assert_close(layer(IMAGES.roll(shifts, (2, 3))), layer(IMAGES).roll(shifts, (2, 3)))


def test_standardized_filters_ignore_their_mean_and_scale() -> None:
    layer = StandardizedConv2d(3, 4, 3).double()
    before = layer(IMAGES)
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([1.0, 20.0, 30.0, 40.0]).view(4, 1, 1, 1)).add_(5.0)
    torch.testing.assert_close(layer(IMAGES), before, rtol=2e-3, atol=1e-3)  # up to the 1e-5 added to the variance


def test_standardized_filters_have_mean_0_and_variance_1() -> None:
    layer = StandardizedConv2d(3, 4, 3).double()
    filters = layer.weight.detach().flatten(1)
    deviations = filters - filters.mean(dim=1, keepdim=True)
    weight = deviations / (deviations.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(IMAGES), F.conv2d(IMAGES, weight.view(4, 3, 3, 3), layer.bias))
    assert layer.state_dict().keys() == nn.Conv2d(3, 4, 3).state_dict().keys()


def test_ghost_norm_is_batch_norm_of_consecutive_64_samples() -> None:
    ghost, plain = SequentialGhostNorm(3).double(), nn.BatchNorm2d(3).double()
    many = inputs(150, 3, 5)
    chunks = many.split(64)
    assert [len(chunk) for chunk in chunks] == [64, 64, 22]
    torch.testing.assert_close(ghost(many), torch.cat([plain(chunk) for chunk in chunks]))
    assert ghost.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(ghost.state_dict()[name], value)
    torch.testing.assert_close(ghost.eval()(many), plain.eval()(many))


def test_numbers_of_groups_of_group_norms() -> None:
    for name, groups in {"groupnorm1": 1, "groupnorm8": 8, "groupnorm32": 24, "groupnorm4th": 6}.items():
        assert normalization_named(name)(24).num_groups == groups


@pytest.mark.parametrize("pixels", [7, 8])
def test_pooling_by_the_stride_averages_the_pixels_inside_the_image(pixels: int) -> None:
    images = inputs(2, 3, pixels)
    rows = [images[:, :, i : i + 2] for i in range(0, pixels, 2)]
    expected = [torch.stack([row[..., j : j + 2].mean(dim=(2, 3)) for j in range(0, pixels, 2)], 2) for row in rows]
    torch.testing.assert_close(SubsampledMean(2)(images), torch.stack(expected, 2))
