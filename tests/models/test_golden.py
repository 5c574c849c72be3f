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
SLOW = ("nfn", "resnet34", "resnet50", "resnet101", "densenet201")
TOLERANCES = {("resnet101", "train_logits"): 1e-8, ("nfn", "eval_logits"): 1e-5, ("nfn", "train_logits"): 1e-5}
"""Where rounding is amplified; 1e-9 elsewhere, relative to the largest logit."""
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
LOGITS = [
    pytest.param(name, mode, id=f"{name}-{mode}", marks=pytest.mark.slow if name in SLOW else ())
    for name, golden in GOLDEN.items()
    for mode in ("eval_logits", "train_logits")
    if mode in golden
]


def state_of(name: str) -> list[tuple[str, list[int]]]:
    """Names and shapes; in the file a batch norm is its name and its number of channels."""
    entries: list[tuple[str, list[int]]] = []
    for key, shape in GOLDEN[name]["state"].items():
        if isinstance(shape, int):
            entries += [(f"{key}.{entry}", [shape] if entry != NORM[-1] else []) for entry in NORM]
        else:
            entries.append((key, shape))
    return entries


@pytest.mark.parametrize("name", GOLDEN)
def test_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, channels=3, classes=10, pixels=32)
    assert sum(p.numel() for p in model.parameters()) == GOLDEN[name]["parameters"]
    assert [(key, list(value.shape)) for key, value in model.state_dict().items()] == state_of(name)


@pytest.mark.parametrize(("name", "mode"), LOGITS)
def test_logits(name: str, mode: str) -> None:
    model = build_model(name, channels=3, classes=10, pixels=32).double()
    fill_(model)
    expected = torch.tensor(GOLDEN[name][mode], dtype=torch.float64)
    with torch.no_grad():
        found = model.train(mode == "train_logits")(inputs(len(expected), 3, 32))
    tolerance = TOLERANCES.get((name, mode), 1e-9)
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
