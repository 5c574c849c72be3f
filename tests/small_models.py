"""A tiny member of each family, built from the tables of the families with small numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.models import densenets, nfnets, vgg
from fullbatch.models.registry import build_model
from fullbatch.objective.hessian_products import SubBatchLoss, forward_over_reverse, reverse_over_reverse

CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "resnet": ("resnet20", 8, {"width": 4}),
    "densenet": ("densenet7", 8, {}),
    "densenet-recomputing": ("densenet7", 8, {"memory_efficient": True, "nonlin_fn": "GELU"}),
    "vgg": ("vgg5", 8, {}),
    "vgg-large-head": ("vgg5", 8, {"head": "ImageNet"}),
    "pyramidnet": ("pyramidnet8", 8, {"alpha": 6}),
    "pyramidnet-bottleneck": ("pyramidnet11", 8, {"alpha": 6, "bottleneck": True}),
    "nfn": ("nfn", 16, {}),
    "linear": ("linear", 8, {}),
}
"""Case -> name of the model, pixels, options."""


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the families build ``CASES`` until the test ends."""
    monkeypatch.setitem(densenets.DEPTHS, 7, (4, (2, 1), 8))
    monkeypatch.setitem(vgg.DEPTHS, 5, ((8,), (8,)))
    monkeypatch.setattr(vgg, "HIDDEN", 16)
    monkeypatch.setattr(nfnets, "WIDTHS", (16, 16, 32, 32))
    monkeypatch.setattr(nfnets, "LENGTHS", (1, 2, 1, 1))
    monkeypatch.setattr(nfnets, "_STEM_WIDTHS", (4, 4, 8, 8))


def small(case: str, **changes: Any) -> nn.Module:
    name, pixels, options = CASES[case]
    torch.manual_seed(0)
    return build_model(name, **{"channels": 3, "classes": 5, "pixels": pixels, **options, **changes})


def images_for(case: str, batch: int = 6, pixels: int | None = None) -> Tensor:
    """Images in float64."""
    pixels = pixels or CASES[case][1]
    return torch.randn(batch, 3, pixels, pixels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def move_from_zeros(model: nn.Module) -> None:
    """Add noise to the parameters, some of which are initially zero and hide a branch."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def assert_exact_hessian_products(model: nn.Module, images: Tensor) -> None:
    """Compare the two exact products of the Hessian and a random direction."""
    model.train()
    move_from_zeros(model)
    direction = [torch.randn_like(parameter) for parameter in model.parameters()]
    point = SubBatchLoss(model, lambda forward: F.cross_entropy(forward(images), torch.arange(len(images))))
    expected = reverse_over_reverse(point, point.gradient(create_graph=True), lambda: direction)
    scale = max(float(product.abs().max()) for product in expected)
    for result, product in zip(forward_over_reverse(point, (), lambda: direction), expected, strict=True):
        torch.testing.assert_close(result, product, rtol=1e-9, atol=1e-10 * scale)
