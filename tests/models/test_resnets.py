"""Residual networks: every option learns and has exact Hessian products, and obeys a law of its own."""

import pytest
import torch
from small_models import assert_exact_hessian_products
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.models import resnets
from fullbatch.models.layers import SubsampledMean
from fullbatch.models.registry import build_model
from fullbatch.models.resnets import BASIC, BOTTLENECK, DEPTHS, ResidualBlock


@pytest.fixture(autouse=True)
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    for depth, table in {8: (BASIC, (1, 1, 2)), 10: (BASIC, (1, 1, 1, 1)), 14: (BOTTLENECK, (1, 1, 1, 2))}.items():
        monkeypatch.setitem(resnets.DEPTHS, depth, table)


def small(pixels: int = 16, **options: object) -> nn.Module:
    torch.manual_seed(0)
    options = {"depth": 8, "width": 8, "downsample": "B", **options}
    return build_model("resnet", channels=3, classes=5, pixels=pixels, **options).double()


def images(batch: int = 4, pixels: int = 16) -> Tensor:
    return torch.randn(batch, 3, pixels, pixels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


VARIATIONS = [
    *({"downsample": kind} for kind in "ABC"),
    *({"stem": kind} for kind in ("standard", "efficient")),
    *({"convolution": kind} for kind in ("circular", "reflect", "replicate", "standardized")),
    *({"normalization": kind} for kind in ("GroupNorm1", "groupnorm8", "groupnorm32", "groupnorm4th", "Identity")),
    *({"normalization": kind} for kind in ("sequentialghostnorm", "InstanceNorm2d", "skipinit")),
    *({"nonlin_fn": kind} for kind in ("GELU", "silu", "PReLU", "Tanh")),
    *({"depth": depth} for depth in (10, 14)),
    {"initialization": "skip-residual"},
    {"depth": 14, "normalization": "skipinit", "stem": "efficient"},
]


@pytest.mark.parametrize("options", VARIATIONS, ids=str)
def test_every_variation_learns_and_has_exact_hessian_products(options: dict[str, object]) -> None:
    model = small(**options)
    loss = F.cross_entropy(model(images()), torch.arange(4))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert loss.isfinite()
    assert gradients[-1].any()  # of the bias of the linear layer; others may initially be zero
    assert gradients[0].any() or "skip" in str(options)
    assert_exact_hessian_products(model, images(2))


@pytest.mark.parametrize("downsample", "ABC")
def test_images_of_any_size_fit(downsample: str) -> None:
    for pixels in (7, 8, 15, 32):
        assert small(pixels, downsample=downsample)(images(2, pixels)).shape == (2, 5)


def test_the_depth_is_the_number_of_layers_without_shortcuts() -> None:
    for depth in DEPTHS.keys() - {8, 10, 14}:
        with torch.device("meta"):
            model = build_model("resnet", depth=depth, channels=3, classes=10, pixels=32)
        layers = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len([name for name in layers if "downsample" not in name]) == depth
        assert len({len(stage) for stage in model.layers}) == 1 or len(model.layers) == 4


def test_the_width_determines_the_number_of_parameters() -> None:
    def count(**options: object) -> int:
        return sum(
            p.numel() for p in build_model("resnet20", channels=3, classes=10, pixels=32, **options).parameters()
        )

    assert count() == 272_474  # 0.27 M, as published
    assert count(width=64) == 4_327_754


def test_shortcuts() -> None:
    kinds = {
        name: [type(module) for module in small(downsample=name).layers[1][0].downsample] for name in ("A", "B", "C")
    }
    assert kinds == {
        "A": [nn.Conv2d],
        "B": [nn.Conv2d, nn.BatchNorm2d],
        "C": [SubsampledMean, nn.Conv2d, nn.BatchNorm2d],
    }


def test_stems_shrink_large_images() -> None:
    for stem, factor in {"CIFAR": 1, "standard": 4, "efficient": 4}.items():
        assert small(stem=stem, pixels=32).stem(images(pixels=32)).shape[-1] == 32 // factor


def test_circular_networks_are_invariant_to_shifts() -> None:
    model = small(convolution="circular", downsample="C").eval()
    torch.testing.assert_close(model(images().roll((4, 8), dims=(2, 3))), model(images()))


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="8 groups do not divide 12 channels"):
        small(width=12, normalization="groupnorm8")


@pytest.mark.parametrize("depth", [8, 14])
def test_with_skip_residual_branches_are_initially_zero(depth: int) -> None:
    blocks = [b for b in small(depth=depth, initialization="skip-residual").modules() if isinstance(b, ResidualBlock)]
    for block in blocks:
        inputs = torch.randn(2, block.conv1.in_channels, 4, 4, dtype=torch.float64)
        assert torch.equal(block(inputs), F.relu(block.downsample(inputs)))
        norms = [module for module in block.children() if isinstance(module, nn.BatchNorm2d)]
        assert [float(norm.weight.detach().unique()) for norm in norms] == [1.0] * (len(norms) - 1) + [0.0]
        assert block.conv1.weight.ne(0).all()
    assert {type(block.downsample) for block in blocks} == {nn.Identity, nn.Sequential}


def test_by_default_norms_are_initially_the_identity() -> None:
    for norm in (module for module in small().modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()


def test_skipinit_is_initially_its_shortcuts_and_has_no_normalization() -> None:
    model = small(normalization="skipinit")
    assert not any("norm" in type(module).__name__.lower() for module in model.modules())
    assert all(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d))
    assert not any(isinstance(module, nn.ReLU) for module in model.stem)  # the first block starts with one
    block = model.layers[0][0]
    inputs = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    assert torch.equal(block(inputs), inputs)
    with torch.no_grad():
        block.skip.gain.fill_(0.5)
    expected = inputs + 0.1 * block.conv2(F.relu(block.conv1(F.relu(inputs))))
    torch.testing.assert_close(block(inputs), expected)


def test_initialization_is_kaiming_normal_fan_out() -> None:
    torch.manual_seed(0)
    weight = build_model("resnet18", channels=3, classes=10, pixels=32).layers[3][0].conv1.weight.detach()
    assert weight.shape == (512, 256, 3, 3)
    assert float(weight.std()) == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert float(weight.mean()) == pytest.approx(0, abs=1e-4)
