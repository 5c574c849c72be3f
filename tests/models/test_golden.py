"""Names, shapes and logits as measured from the paper's code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from filling import fill_, inputs

from fullbatch.models.registry import build_model

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "golden" / "models.json").read_text(encoding="utf-8")
)
FAST = ("resnet18", "resnet50")
LOGITS = [
    pytest.param(name, mode, id=f"{name}-{mode}", marks=() if name in FAST else pytest.mark.slow)
    for name, golden in GOLDEN.items()
    for mode in ("eval_logits", "train_logits")
    if mode in golden
]


@pytest.mark.parametrize("name", GOLDEN)
def test_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, channels=3, classes=10, pixels=32)
    assert sum(p.numel() for p in model.parameters()) == GOLDEN[name]["parameters"]
    found = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert list(found.items()) == list(GOLDEN[name]["state"].items())


@pytest.mark.parametrize(("name", "mode"), LOGITS)
def test_logits(name: str, mode: str) -> None:
    model = build_model(name, channels=3, classes=10, pixels=32).double()
    fill_(model)
    expected = torch.tensor(GOLDEN[name][mode], dtype=torch.float64)
    with torch.no_grad():
        found = model.train(mode == "train_logits")(inputs(len(expected), 3, 32))
    tolerance = 1e-8 if (name, mode) == ("resnet101", "train_logits") else 1e-9
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
