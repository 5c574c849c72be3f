"""Exported models: weights and card come back, mistakes are named."""

import sys
from pathlib import Path

import pytest
import torch
from original_files import stand_in_safetensors, trained, write_list
from small_models import images_for, small
from torch import nn

from fullbatch.models.model_file import read_model
from fullbatch.models.weights import load_weights
from fullbatch.training.checkpoint import save_checkpoint
from fullbatch.training.export import card_path, export_model, read_card
from fullbatch.training.state import TrainState

INPUTS = images_for("resnet")
CONFIG = {
    "model": {"name": "resnet", "depth": 20},
    "data": {"name": "digits", "mean": [0.5]},
    "hyp": {"steps": 2, "grad_clip_norm": float("inf"), "grad_clip": None},
}


@pytest.fixture
def model() -> nn.Module:
    return small("resnet").double()


def test_exported_weights_and_card_come_back(monkeypatch: pytest.MonkeyPatch, model: nn.Module, tmp_path: Path) -> None:
    stand_in_safetensors(monkeypatch)
    model = model.to(memory_format=torch.channels_last)
    state = TrainState(model, trained(model, INPUTS, 1))
    state.rows = [
        {"step": 1, "train_loss": 2.0, "train_acc": 0.5, "valid_loss": 2.5, "valid_acc": 0.25},
        {"step": 2, "train_loss": 1.0, "train_acc": 0.75},
    ]
    command = ["train.py", "hyp=fb1"]
    save_checkpoint(tmp_path / "x.pth", state.state_dict(), config=CONFIG, seed=3, command=command)
    card = export_model(tmp_path / "x.pth", tmp_path / "x.safetensors")
    assert card == {
        "format": "fullbatch model card",
        "model": CONFIG["model"],
        "data": CONFIG["data"],
        "hyperparameters": {"steps": 2, "grad_clip_norm": "inf", "grad_clip": None},
        "seed": 3,
        "steps": 2,
        "weights": "last step",
        "accuracy": {
            "train_loss": 1.0,
            "train_acc": 0.75,
            "valid_loss": 2.5,
            "valid_acc": 0.25,
            "validated_after_step": 1,
        },
        "command": command,
    }
    assert read_card(tmp_path / "x.safetensors") == card
    weights = read_model(tmp_path / "x.safetensors").weights
    assert {*weights} == {*model.state_dict()}
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    load_weights(small("resnet").double(), weights)
    files = [path.read_bytes() for path in (tmp_path / "x.safetensors", card_path(tmp_path / "x.safetensors"))]
    export_model(tmp_path / "x.pth", tmp_path / "again.safetensors")
    assert files == [(tmp_path / name).read_bytes() for name in ("again.safetensors", "again.json")]


def test_the_card_of_a_list_of_five_has_only_the_steps(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, tmp_path: Path
) -> None:
    stand_in_safetensors(monkeypatch)
    write_list(tmp_path / "x.pth", model, trained(model, INPUTS), 3)
    card = export_model(tmp_path / "x.pth", tmp_path / "x.safetensors")
    assert (card["steps"], card["model"], card["accuracy"], card["command"]) == (3, None, {}, None)


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.pth: exported weights need a name that ends in \.safetensors"):
        export_model(tmp_path / "y.pth", tmp_path / "x.pth")
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")
    for content in ("{}", "{"):
        card_path(path).write_text(content)
        with pytest.raises(ValueError, match=r"x\.json: not a model card"):
            read_card(path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for refused in (lambda: read_model(path), lambda: export_model(tmp_path / "y.pth", path)):
        with pytest.raises(ValueError, match=r"pip install 'fullbatch\[safetensors\]'"):
            refused()
