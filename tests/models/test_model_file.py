"""Reading trained models: every kind of file, and files that are refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from original_files import same_tensors, stand_in_safetensors, trained, write_list
from small_models import images_for, shrink, small
from torch import nn

from fullbatch.models.model_file import read_model
from fullbatch.models.weights import load_weights

INPUTS = images_for("resnet")


@pytest.fixture
def model() -> nn.Module:
    return small("resnet").double()


@pytest.mark.parametrize("case", ["resnet", "densenet", "vgg", "pyramidnet", "nfn", "linear"])
def test_the_model_of_a_list_of_five_gives_the_same_outputs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    shrink(monkeypatch)
    model = small(case).double()
    inputs = images_for(case)
    write_list(tmp_path / "x.pth", model, trained(model, inputs), 3)
    stored = read_model(tmp_path / "x.pth")
    assert (stored.step, stored.checkpoint) == (3, {})
    assert stored.missing[0] == "the table of the steps so far"
    other = small(case).double()
    load_weights(other, stored.weights)
    assert torch.equal(other.eval()(inputs), model.eval()(inputs))


@pytest.mark.parametrize("legacy", [False, True])
def test_configuration_nodes_in_the_optimizer_state_cost_only_its_momentum(
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
    assert same_tensors(stored.weights, model.state_dict())
    assert (stored.step, stored.optimizer) == (3, None)
    assert stored.missing[0] == "a readable optimizer state (momentum starts at zero)"


def test_a_scheduler_in_the_scheduler_state_costs_nothing(model: nn.Module, tmp_path: Path) -> None:
    optimizer = trained(model, INPUTS)
    inside = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    state = {"multiplier": 1.0, "after_scheduler": inside, "last_epoch": 3}
    torch.save([optimizer.state_dict(), model.state_dict(), state, {}, 3], tmp_path / "x.pth")
    stored = read_model(tmp_path / "x.pth")
    assert same_tensors(stored.weights, model.state_dict())
    assert stored.optimizer is not None
    for index, entry in optimizer.state_dict()["state"].items():
        assert torch.equal(stored.optimizer["state"][index]["momentum_buffer"], entry["momentum_buffer"])


class Calls:
    """A pickle that calls ``function`` when an ordinary unpickler reads it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class SetsState:
    def __reduce__(self) -> tuple[Any, ...]:
        return SetsState, (), {"a": 1}

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("called")


@pytest.mark.parametrize("kind", ["system", "eval", "getattr", "state"])
def test_code_anywhere_in_a_list_is_refused_and_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    for place in (None, 0, 1, 2, 3, 4):
        evil = {
            "system": Calls(os.system, "touch was_here"),
            "eval": Calls(eval, "open('was_here', 'w')"),
            "getattr": Calls(open, "was_here", "w"),
            "state": SetsState(),
        }[kind]
        content: Any = [{"state": {}, "param_groups": []}, {"w": torch.zeros(2)}, {}, {}, 3]
        if place is not None:
            content[place] = evil
        elif kind == "getattr":
            content = Calls(getattr, Calls(__import__, "os"), "system")
        else:
            content = evil
        torch.save(content, path)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=r"x\.pth: not a checkpoint of this program \(con"):
            read_model(path)
        assert list(tmp_path.iterdir()) == [path], place
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{}, {"w": torch.zeros(2)}, {}, 3], "a list of 4 that is not"),
        ([{}, {"w": torch.zeros(2)}, {}, {}, "3"], "a list of 5 that is not"),
        ([{}, {"w": torch.zeros(2)}, {}, {}, -1], "a list of 5 that is not"),
        ([{}, {"w": 3}, {}, {}, 3], "contains no model: neither a state dict"),
        ([{}, {}, {}, {}, 3], "contains no model"),
        ({"epoch": 3}, "contains no model"),
        (torch.zeros(2), "contains no model"),
        ({"format": "fullbatch checkpoint", "version": 99}, "checkpoint of format 99; this version reads formats 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_content_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"x.pth: {message}"):
        read_model(tmp_path / "x.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(model: nn.Module, tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save([None, state, None, None, 3], tmp_path / "x.pth")
    assert same_tensors(read_model(tmp_path / "x.pth").weights, model.state_dict())
    torch.save(state | {"other": torch.zeros(1)}, tmp_path / "x.pth")  # not shared by all names
    assert prefix + "fc.bias" in read_model(tmp_path / "x.pth").weights


def test_the_stand_in_writes_the_format_of_safetensors() -> None:
    real = pytest.importorskip("safetensors.torch")
    import original_files

    tensors = {"w": torch.randn(3, 4, dtype=torch.float64), "n": torch.tensor(3), "b": torch.randn(2)}
    for content in (real.load(original_files._save(tensors)), original_files._load(real.save(tensors))):
        assert same_tensors(dict(sorted(content.items())), dict(sorted(tensors.items())))


def test_damaged_safetensors_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in_safetensors(monkeypatch)
    (tmp_path / "x.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: damaged or truncated safetensors"):
        read_model(tmp_path / "x.safetensors")
