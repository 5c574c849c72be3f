"""A tiny member of each family: the families' own tables with small numbers, so that laws are cheap to check."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fullbatch.models import densenets, nfnets, vgg
from fullbatch.models.registry import build_model

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
"""Name of the model, pixels, options."""


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``CASES`` buildable until the test ends."""
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
