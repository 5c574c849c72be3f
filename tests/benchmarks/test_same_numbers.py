"""`same_numbers.py` reports the first difference between tables and checkpoints, and nothing but times is left out."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from composing import ROOT


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("same_numbers")


@pytest.mark.parametrize(
    ("text", "difference"),
    [
        ("step\tloss\ttrain_time\n1\t0.5\t7\n2\t0.25\t8\n", None),
        ("step\tloss\ttrain_time\n1\t0.5\t0\n2\t0.26\t0\n", "row 2, loss: 0.25 in old, 0.26 in new"),
        ("step\tloss\ttrain_time\n1\t0.5\t0\n", "2 rows in old, 1 in new"),
        ("step\tloss\tlr\n1\t0.5\t0\n", "columns ['lr']"),
    ],
)
def test_tables_are_compared_cell_by_cell(
    module: ModuleType, tmp_path: Path, text: str, difference: str | None
) -> None:
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_text("step\tloss\ttrain_time\n1\t0.5\t3\n2\t0.25\t4\n")
    new.write_text(text)
    assert module.compare_tables(old, new) == difference


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({}, None),
        ({"rows": [1]}, None),  # compared as a table
        ({"model": {"weight": torch.tensor([0.0, float("nan")])}}, "model.weight: the largest difference is "),  # -0.0
        ({"optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}}}, "optimizer.state.0.momentum_buffer: "),
        ({"optimizer": {"state": {}}}, "optimizer.state: only one of both has ['0']"),
        ({"ema": None}, "ema: {"),
    ],
)
def test_checkpoints_are_compared_bit_by_bit(
    module: ModuleType, tmp_path: Path, changes: dict[str, Any], difference: str | None
) -> None:
    state = {
        "model": {"weight": torch.tensor([-0.0, float("nan")])},
        "ema": {"weight": torch.ones(1)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2, dtype=torch.float64)}}},
        "rows": [],
    }
    for name, content in (("old", state), ("new", {**state, **changes})):
        torch.save({"state": content}, tmp_path / name)
    shown = module.compare_checkpoints(tmp_path / "old", tmp_path / "new")
    assert shown is None if difference is None else shown.startswith(difference)
