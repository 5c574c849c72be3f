"""Trained models in files of every kind: what is read, what continues, what is refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from original_files import stand_in_safetensors, trained, write_list
from small_models import images_for, shrink, small
from torch import Tensor, nn

from fullbatch.models.weights import load_weights
from fullbatch.optim.ema import ExponentialMovingAverage
from fullbatch.training.checkpoint import save_checkpoint
from fullbatch.training.export import card_path, export_model, read_card
from fullbatch.training.model_file import read_model, resume_from
from fullbatch.training.state import TrainState

INPUTS = images_for("resnet")


@pytest.fixture
def model() -> nn.Module:
    return small("resnet").double()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", ["resnet", "densenet", "vgg", "pyramidnet", "nfn", "linear"])
def test_a_list_of_five_is_evaluated_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str) -> None:
    shrink(monkeypatch)
    model = small(case).double()
    inputs = images_for(case)
    optimizer = trained(model, inputs)
    write_list(tmp_path / "x.pth", model, optimizer, 3)
    stored = read_model(tmp_path / "x.pth")
    assert (stored.step, stored.checkpoint) == (3, {})
    assert stored.notes[0] == "the table of the steps so far"
    other = small(case).double()
    load_weights(other, stored.weights)
    assert torch.equal(other.eval()(inputs), model.eval()(inputs))


def test_a_list_of_five_continues_bitwise(model: nn.Module, tmp_path: Path) -> None:
    write_list(tmp_path / "x.pth", model, trained(model, INPUTS), 3)
    trained_further = small("resnet").double()
    state = TrainState(trained_further, torch.optim.SGD(trained_further.parameters(), lr=7.0, momentum=0.5))
    resume_from(state, read_model(tmp_path / "x.pth"))
    assert state.step == 3
    assert state.rows == [{"step": 1}, {"step": 2}, {"step": 3}]
    (group,) = state.optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (7.0, 0.5)  # hyperparameters are this run's
    reference = small("resnet").double()
    optimizer = trained(reference, INPUTS)
    ours, theirs = state.optimizer.state_dict()["state"], optimizer.state_dict()["state"]
    for index, entry in theirs.items():
        assert torch.equal(ours[index]["momentum_buffer"], entry["momentum_buffer"])
    assert same(trained_further.state_dict(), reference.state_dict())


def test_an_average_starts_from_the_weights(model: nn.Module, tmp_path: Path) -> None:
    write_list(tmp_path / "x.pth", model, trained(model, INPUTS), 3)
    other = small("resnet").double()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    state = TrainState(other, optimizer, ExponentialMovingAverage(other, 0.9))
    resume_from(state, read_model(tmp_path / "x.pth"))
    assert same(state.evaluated_model.state_dict(), model.state_dict())


@pytest.mark.parametrize("legacy", [False, True])
def test_configuration_nodes_in_the_optimizer_state_cost_its_momentum_only(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, tmp_path: Path, legacy: bool
) -> None:
    cfg = OmegaConf.create({"lr": 0.1, "betas": [0.9, 0.999], "nested": {"name": "x", "on": True, "none": None}})
    optimizer = trained(model, INPUTS)
    state = optimizer.state_dict()
    state["param_groups"][0] |= {"betas": cfg.betas, "nested": cfg.nested, "lr": cfg._get_node("lr")}
    if legacy:
        save = torch.save
        monkeypatch.setattr(torch, "save", lambda *a: save(*a, _use_new_zipfile_serialization=False))
    write_list(tmp_path / "x.pth", model, optimizer, 3, state)
    stored = read_model(tmp_path / "x.pth")
    assert same(stored.weights, dict(model.state_dict()))
    assert stored.optimizer is None
    assert stored.notes[0] == "a readable optimizer state (momentum starts at zero)"
    resumed = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    resume_from(resumed, stored)
    assert resumed.step == 3


def test_a_scheduler_in_the_scheduler_state_costs_nothing(model: nn.Module, tmp_path: Path) -> None:
    optimizer = trained(model, INPUTS)
    inside = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    state = {"multiplier": 1.0, "after_scheduler": inside, "last_epoch": 3}
    torch.save([optimizer.state_dict(), model.state_dict(), state, {}, 3], tmp_path / "x.pth")
    stored = read_model(tmp_path / "x.pth")
    assert same(stored.weights, dict(model.state_dict()))
    resumed = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    resume_from(resumed, stored)
    for index, entry in optimizer.state_dict()["state"].items():
        assert torch.equal(resumed.optimizer.state_dict()["state"][index]["momentum_buffer"], entry["momentum_buffer"])


class Calls:
    """A pickle that calls ``function`` when it is read by an ordinary unpickler."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class SetsState:
    def __reduce__(self) -> tuple[Any, ...]:
        return SetsState, (), {"a": 1}

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("called")


@pytest.mark.parametrize("place", [None, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["system", "eval", "getattr", "state"])
def test_code_in_the_place_of_a_list_is_refused_and_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, place: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = {
        "system": Calls(os.system, "touch was_here"),
        "eval": Calls(eval, "open('was_here', 'w')"),
        "getattr": Calls(getattr, os, "system") if place is None else Calls(open, "was_here", "w"),
        "state": SetsState(),
    }[kind]
    content: Any = [{"state": {}, "param_groups": []}, {"w": torch.zeros(2)}, {}, {}, 3]
    if place is None:
        content = evil
    else:
        content[place] = evil
    if kind == "getattr" and place is None:
        evil.arguments = (Calls(__import__, "os"), "system")
    torch.save(content, tmp_path / "x.pth")
    before = (tmp_path / "x.pth").read_bytes()
    with pytest.raises(ValueError, match=r"x\.pth: no checkpoint of this program \(damaged, truncated, or holds more"):
        read_model(tmp_path / "x.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]
    assert (tmp_path / "x.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{}, {"w": torch.zeros(2)}, {}, 3], "a list of 4 that is not"),
        ([{}, {"w": torch.zeros(2)}, {}, {}, "3"], "a list of 5 that is not"),
        ([{}, {"w": torch.zeros(2)}, {}, {}, -1], "a list of 5 that is not"),
        ([{}, {"w": 3}, {}, {}, 3], "holds no model: neither a state dict"),
        ([{}, {}, {}, {}, 3], "holds no model"),
        ({"epoch": 3}, "holds no model"),
        (torch.zeros(2), "holds no model"),
        ({"format": "fullbatch checkpoint", "version": 99}, "checkpoint of format 99; this version reads format 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_content_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"x.pth: {message}"):
        read_model(tmp_path / "x.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(model: nn.Module, tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save([None, state, None, None, 3], tmp_path / "x.pth")
    assert same(read_model(tmp_path / "x.pth").weights, dict(model.state_dict()))
    torch.save(state | {"other": torch.zeros(1)}, tmp_path / "x.pth")  # not of all names: part of a name
    assert prefix + "fc.bias" in read_model(tmp_path / "x.pth").weights


def checkpoint_of(model: nn.Module, path: Path, ema: bool = False, config: Any = None) -> TrainState:
    state = TrainState(model, trained(model, INPUTS, 1), ExponentialMovingAverage(model, 0.9) if ema else None)
    trained(model, INPUTS, 1)
    state.rows = [
        {"step": 1, "train_loss": 2.0, "train_acc": 0.5, "valid_loss": 2.5, "valid_acc": 0.25},
        {"step": 2, "train_loss": 1.0, "train_acc": 0.75},
    ]
    save_checkpoint(path, state.state_dict(), config=config or {}, seed=3, command=["train.py", "hyp=fb1"])
    return state


@pytest.mark.parametrize("ema", [False, True])
def test_a_checkpoint_gives_the_weights_that_were_validated(model: nn.Module, tmp_path: Path, ema: bool) -> None:
    state = checkpoint_of(model, tmp_path / "x.pth", ema)
    stored = read_model(tmp_path / "x.pth")
    assert same(stored.weights, dict(state.evaluated_model.state_dict()))
    assert same(stored.weights, dict(model.state_dict())) != ema
    assert (stored.step, stored.checkpoint["seed"]) == (2, 3)
    other = small("resnet").double()
    average = ExponentialMovingAverage(other, 0.9) if ema else None
    resumed = TrainState(other, torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9), average)
    resume_from(resumed, stored)
    assert resumed.rows == state.rows
    assert same(other.state_dict(), model.state_dict())


def test_weights_alone_continue_nothing(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "x.pth")
    stored = read_model(tmp_path / "x.pth")
    assert same(stored.weights, dict(model.state_dict()))
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="a file of another program that holds weights alone"):
        resume_from(state, stored)


def test_another_model_or_optimizer_is_refused(model: nn.Module, tmp_path: Path) -> None:
    write_list(tmp_path / "x.pth", model, trained(model, INPUTS), 3)
    stored = read_model(tmp_path / "x.pth")
    wide = small("resnet", width=8).double()
    with pytest.raises(
        ValueError,
        match=r"another model: \d+ entries differ \(stem\.0\.weight: \(8, 3, 3, 3\) here, \(4, 3, 3, 3\) there; ",
    ):
        resume_from(TrainState(wide, torch.optim.SGD(wide.parameters(), lr=0.1, momentum=0.9)), stored)
    with pytest.raises(ValueError, match="that of another optimizer"):
        resume_from(TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.1)), stored)
    parameters = list(model.parameters())
    groups = [{"params": parameters[:5]}, {"params": parameters[5:]}]
    with pytest.raises(ValueError, match=r"is of groups of \[65\] parameters, here they are \[5, 60\]"):
        resume_from(TrainState(model, torch.optim.SGD(groups, lr=0.1, momentum=0.9)), stored)
    assert stored.optimizer is not None
    stored.optimizer["state"][4]["momentum_buffer"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"of another model \(momentum_buffer of parameter 4: \[3\] there, \[4\] here"):
        resume_from(TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)), stored)


# Export

CONFIG = {
    "model": {"name": "resnet", "depth": 20},
    "data": {"name": "digits", "mean": [0.5]},
    "hyp": {"steps": 2, "grad_clip_norm": float("inf"), "grad_clip": None},
}


def test_exported_weights_and_card_come_back(monkeypatch: pytest.MonkeyPatch, model: nn.Module, tmp_path: Path) -> None:
    stand_in_safetensors(monkeypatch)
    checkpoint_of(model.to(memory_format=torch.channels_last), tmp_path / "x.pth", config=CONFIG)
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
        "command": ["train.py", "hyp=fb1"],
    }
    assert read_card(tmp_path / "x.safetensors") == card
    weights = read_model(tmp_path / "x.safetensors").weights
    assert {*weights} == {*model.state_dict()}
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    load_weights(small("resnet").double(), weights)
    files = [path.read_bytes() for path in (tmp_path / "x.safetensors", card_path(tmp_path / "x.safetensors"))]
    export_model(tmp_path / "x.pth", tmp_path / "again.safetensors")
    assert files == [(tmp_path / name).read_bytes() for name in ("again.safetensors", "again.json")]


def test_a_list_of_five_is_exported_with_what_is_known(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, tmp_path: Path
) -> None:
    stand_in_safetensors(monkeypatch)
    write_list(tmp_path / "x.pth", model, trained(model, INPUTS), 3)
    card = export_model(tmp_path / "x.pth", tmp_path / "x.safetensors")
    assert (card["steps"], card["model"], card["accuracy"], card["command"]) == (3, None, {}, None)


def test_mistakes_with_safetensors_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.pth: the name of exported weights ends in \.safetensors"):
        export_model(tmp_path / "y.pth", tmp_path / "x.pth")
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no such thing")
    card_path(path).write_text("{}")
    with pytest.raises(ValueError, match=r"x\.json: no model card"):
        read_card(path)
    card_path(path).write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: no model card"):
        read_card(path)
    stand_in_safetensors(monkeypatch)
    with pytest.raises(ValueError, match=r"x\.safetensors: damaged or truncated safetensors"):
        read_model(path)
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    for refused in (lambda: read_model(path), lambda: export_model(tmp_path / "y.pth", path)):
        with pytest.raises(ValueError, match=r"pip install 'fullbatch\[safetensors\]'"):
            refused()


def test_the_stand_in_writes_the_real_format(tmp_path: Path) -> None:
    real = pytest.importorskip("safetensors.torch")
    import original_files

    tensors = {"w": torch.randn(3, 4, dtype=torch.float64), "n": torch.tensor(3), "b": torch.randn(2)}
    assert same(dict(sorted(real.load(original_files._save(tensors)).items())), dict(sorted(tensors.items())))
    assert same(dict(sorted(original_files._load(real.save(tensors)).items())), dict(sorted(tensors.items())))
