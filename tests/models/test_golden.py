"""Names, shapes and logits measured with the paper's code."""

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
"""Relative to the largest logit, for models that amplify rounding; 1e-9 for the others."""
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
MODES = ("eval_logits", "train_logits")
LOGITS = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name, golden in GOLDEN.items()
    if golden.keys() & MODES
]


def state_of(name: str) -> list[tuple[str, list[int]]]:
    """Return names and shapes; the file lists a batch norm as its name and its number of channels."""
    entries: list[tuple[str, list[int]]] = []
    for key, shape in GOLDEN[name]["state"].items():
        if isinstance(shape, int):
            entries += [(f"{key}.{entry}", [shape] if entry != NORM[-1] else []) for entry in NORM]
        else:
            entries.append((key, shape))
    return entries


def test_names_and_shapes() -> None:
    for name in GOLDEN:
        with torch.device("meta"):
            model = build_model(name, channels=3, classes=10, pixels=32)
        assert sum(p.numel() for p in model.parameters()) == GOLDEN[name]["parameters"], name
        assert [(key, list(value.shape)) for key, value in model.state_dict().items()] == state_of(name), name


@pytest.mark.parametrize("name", LOGITS)
def test_logits(name: str) -> None:
    model = build_model(name, channels=3, classes=10, pixels=32).double()
    fill_(model)
    for mode in MODES:  # evaluation first, as training mode updates the statistics
        if mode in GOLDEN[name]:
            expected = torch.tensor(GOLDEN[name][mode], dtype=torch.float64)
            with torch.no_grad():
                logits = model.train(mode == "train_logits")(inputs(len(expected), 3, 32))
            tolerance = TOLERANCES.get((name, mode), 1e-9)
            assert float((logits - expected).abs().max()) <= tolerance * float(expected.abs().max()), mode
