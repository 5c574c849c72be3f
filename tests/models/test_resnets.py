"""The variations of residual networks, each by a law of its own."""

from collections.abc import Callable

import pytest
import torch
from composing import CONFIG
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.models.layers import (
    SequentialGhostNorm,
    StandardizedConv2d,
    SubsampledMean,
    activation_named,
    convolution_named,
    normalization_named,
)
from fullbatch.models.registry import NAMES, build_model
from fullbatch.models.resnets import Block


def small(pixels: int = 16, **options: object) -> nn.Module:
    torch.manual_seed(0)
    options = {"depth": 20, "width": 8, **options}
    return build_model("resnet", channels=3, classes=5, pixels=pixels, **options).double()


def pictures(batch: int = 4, pixels: int = 16) -> Tensor:
    return torch.randn(batch, 3, pixels, pixels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


VARIATIONS = [
    *({"downsample": kind} for kind in "ABC"),
    *({"stem": kind} for kind in ("CIFAR", "standard", "efficient")),
    *({"convolution": kind} for kind in ("Standard", "circular", "reflect", "replicate", "standardized")),
    *({"normalization": kind} for kind in ("GroupNorm1", "groupnorm8", "groupnorm32", "groupnorm4th", "Identity")),
    *({"normalization": kind} for kind in ("sequentialghostnorm", "InstanceNorm2d", "skipinit")),
    *({"nonlin_fn": kind} for kind in ("GELU", "silu", "PReLU", "Tanh")),
    *({"depth": depth} for depth in (32, 18, 50)),
    {"initialization": "skip-residual"},
    {"depth": 50, "normalization": "skipinit", "stem": "efficient"},
]


@pytest.mark.parametrize("options", VARIATIONS, ids=str)
def test_every_variation_learns(options: dict[str, object]) -> None:
    model = small(pixels=32, **options)
    loss = F.cross_entropy(model(pictures(pixels=32)), torch.arange(4))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert loss.isfinite()
    assert gradients[-1].any()  # of the linear layer's bias; the others may start where nothing reaches them
    assert gradients[0].any() or "skip" in str(options)


@pytest.mark.parametrize("pixels", [7, 8, 15, 32])
@pytest.mark.parametrize("downsample", "ABC")
def test_pictures_of_any_size_fit(pixels: int, downsample: str) -> None:
    assert small(pixels, downsample=downsample)(pictures(2, pixels)).shape == (2, 5)


def test_the_width_is_honoured() -> None:
    def count(**options: object) -> int:
        return sum(
            p.numel() for p in build_model("resnet20", channels=3, classes=10, pixels=32, **options).parameters()
        )

    assert count() == 272_474  # 0.27 M, as published
    assert count(width=64) == 4_327_754


def test_shortcuts_are_a_strided_convolution_b_with_norm_c_pooled() -> None:
    kinds = {
        name: [type(module) for module in small(downsample=name).layers[1][0].downsample] for name in ("A", "B", "C")
    }
    assert kinds == {
        "A": [nn.Conv2d],
        "B": [nn.Conv2d, nn.BatchNorm2d],
        "C": [SubsampledMean, nn.Conv2d, nn.BatchNorm2d],
    }
    torch.testing.assert_close(SubsampledMean(2)(pictures()), F.avg_pool2d(pictures(), 2))


@pytest.mark.parametrize(("stem", "factor"), [("CIFAR", 1), ("standard", 4), ("efficient", 4)])
def test_stems_shrink_large_pictures(stem: str, factor: int) -> None:
    assert small(stem=stem, pixels=32).stem(pictures(pixels=32)).shape[-1] == 32 // factor


@pytest.mark.parametrize("name", ["circular", "reflect", "replicate"])
def test_paddings_are_their_own(name: str) -> None:
    layer = convolution_named(name)(3, 4, 3, padding=1).double()
    padded = F.pad(pictures(), (1, 1, 1, 1), mode=name)
    torch.testing.assert_close(layer(pictures()), F.conv2d(padded, layer.weight, layer.bias))


def test_circular_networks_do_not_see_where_a_picture_starts() -> None:
    model = small(convolution="circular", downsample="C").eval()
    torch.testing.assert_close(model(pictures().roll((4, 8), dims=(2, 3))), model(pictures()))


def test_standardized_filters_ignore_their_mean_and_scale() -> None:
    layer = StandardizedConv2d(3, 4, 3).double()
    before = layer(pictures())
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([1.0, 20.0, 30.0, 40.0]).view(4, 1, 1, 1)).add_(5.0)
    torch.testing.assert_close(layer(pictures()), before, rtol=2e-3, atol=1e-3)  # up to the 1e-5 beside the variance
    assert layer.state_dict().keys() == nn.Conv2d(3, 4, 3).state_dict().keys()


def test_ghost_norm_is_batch_norm_of_64_samples_in_turn() -> None:
    ghost, plain = SequentialGhostNorm(3).double(), nn.BatchNorm2d(3).double()
    chunks = pictures(150).split(64)
    assert [len(chunk) for chunk in chunks] == [64, 64, 22]
    torch.testing.assert_close(ghost(pictures(150)), torch.cat([plain(chunk) for chunk in chunks]))
    for name, value in plain.state_dict().items():
        assert torch.equal(ghost.state_dict()[name], value)
    torch.testing.assert_close(ghost.eval()(pictures(150)), plain.eval()(pictures(150)))


@pytest.mark.parametrize(
    ("name", "groups"), [("groupnorm1", 1), ("groupnorm8", 8), ("groupnorm32", 16), ("groupnorm4th", 4)]
)
def test_group_norms_have_their_groups(name: str, groups: int) -> None:
    assert normalization_named(name)(16).num_groups == groups


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="8 groups do not divide 12 channels"):
        small(width=12, normalization="groupnorm8")


@pytest.mark.parametrize("depth", [20, 50])
def test_skip_residual_starts_with_branches_that_add_nothing(depth: int) -> None:
    model = small(depth=depth, initialization="skip-residual")
    for block in (module for module in model.modules() if isinstance(module, Block)):
        if isinstance(block.downsample, nn.Identity):
            inputs = torch.randn(2, block.conv1.in_channels, 4, 4, dtype=torch.float64)
            assert torch.equal(block(inputs), F.relu(inputs))
            assert block.conv1.weight.ne(0).all()
    for norm in (module for module in small(depth=depth).modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.weight.eq(1).all()


def test_skipinit_starts_as_its_shortcuts_and_has_no_normalization() -> None:
    model = small(normalization="skipinit")
    assert not any("norm" in type(module).__name__.lower() for module in model.modules())
    assert all(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d))
    block = model.layers[0][1]
    inputs = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    assert torch.equal(block(inputs), inputs)
    with torch.no_grad():
        block.skip.gain.fill_(0.5)
    expected = inputs + 0.1 * block.conv2(F.relu(block.conv1(F.relu(inputs))))
    torch.testing.assert_close(block(inputs), expected)


def test_initialization_is_kaiming_normal_fan_out() -> None:
    weight = build_model("resnet18", channels=3, classes=10, pixels=32).layers[3][1].conv2.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert float(weight.mean()) == pytest.approx(0, abs=1e-4)


def test_softmax_regression_sees_the_whole_picture() -> None:
    model = build_model("linear", channels=3, classes=5, pixels=16).double()
    assert [tuple(p.shape) for p in model.parameters()] == [(5, 768), (5,)]
    inputs = pictures().requires_grad_()
    (gradient,) = torch.autograd.grad(model(inputs).sum(), inputs)
    assert gradient.ne(0).all()


@pytest.mark.parametrize("path", sorted((CONFIG / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configuration_has_the_defaults_of_the_code(path) -> None:  # type: ignore[no-untyped-def]
    options = OmegaConf.to_container(OmegaConf.load(path))
    with torch.device("meta"):
        configured = build_model(**options, channels=3, classes=10, pixels=32)
        default = build_model(path.stem, channels=3, classes=10, pixels=32)
    assert repr(configured) == repr(default)
    assert path.stem in NAMES


def test_names_are_case_insensitive() -> None:
    with torch.device("meta"):
        for name in ("ResNet18", "RESNET18"):
            assert repr(build_model(name, channels=3, classes=10, pixels=32)) == repr(
                build_model("resnet18", channels=3, classes=10, pixels=32)
            )


MISTAKES: list[tuple[Callable[[], object], str]] = [
    (
        lambda: build_model("alexnet", channels=3, classes=2, pixels=8),
        "name=alexnet: unknown; known: resnet18, resnet20",
    ),
    (lambda: build_model("resnet", channels=3, classes=2, pixels=8), "name=resnet: needs a depth"),
    (lambda: small(depth=19), "depth=19: unknown; known: 18, 20, 32"),
    (
        lambda: build_model("resnet18", depth=20, channels=3, classes=2, pixels=8),
        "name=resnet18 and depth=20 contradict",
    ),
    (lambda: small(wide=3), "wide: no option of resnet; accepted: depth, width, stem"),
    (
        lambda: build_model("linear", channels=3, classes=2, pixels=8, width=3),
        "width: no option of linear; accepted: none",
    ),
    (lambda: small(stem="imagenet"), "stem=imagenet: unknown; known: CIFAR, standard, efficient"),
    (lambda: small(downsample="D"), "downsample=D: unknown; known: A, B, C"),
    (lambda: small(initialization="zero"), "initialization=zero: unknown; known: default, skip-residual"),
    (lambda: small(convolution="wavy"), "convolution=wavy: unknown; known: Standard, circular"),
    (lambda: small(normalization="Norm"), "normalization=Norm: unknown; known: BatchNorm2d, .*groupnorm4th"),
    (lambda: activation_named("Softmax"), "nonlin_fn=Softmax: unknown; known: ReLU"),
    (lambda: small(normalization="skipinit", initialization="skip-residual"), "skip-residual: needs a normalization"),
    (lambda: small(pixels=4, convolution="reflect"), "convolution=reflect: pictures of 4 pixels shrink to one"),
]


@pytest.mark.parametrize(("build", "message"), MISTAKES, ids=[message[:30] for _, message in MISTAKES])
def test_a_mistake_is_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
