"""Reading trained models: every kind of file, and files that are refused."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_files import Calls
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
        with pytest.raises(ValueError, match=r"x\.pth: not a checkpoint of this program \(contains more than tensors"):
            read_model(path)
        assert list(tmp_path.iterdir()) == [path], place
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{}, {"w": torch.zeros(2)}, {}, {}, "3"], "a list of 5 that is not"),
        ([{}, {"w": torch.zeros(2)}, {}, {}, -1], "a list of 5 that is not"),
        ([{}, {"w": 3}, {}, {}, 3], "contains no model: neither a state dict"),
        ([{}, {}, {}, {}, 3], "contains no model"),
        ({"epoch": 3}, "contains no model"),
        (torch.zeros(2), "contains no model"),
        (
            {"format": "fullbatch checkpoint", "version": 99},
            "checkpoint of format 99; this version reads formats 1 and 2",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_content_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"x.pth: {message}"):
        read_model(tmp_path / "x.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_prefixes_of_wrappers_are_removed(model: nn.Module, tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save([None, state, None, None, 3], tmp_path / "x.pth")
    assert same_tensors(read_model(tmp_path / "x.pth").weights, model.state_dict())
    torch.save(state | {"other": torch.zeros(1)}, tmp_path / "x.pth")  # not shared by all names
    assert prefix + "fc.bias" in read_model(tmp_path / "x.pth").weights


LINEAR = nn.Linear(3, 2)
WEIGHTS = LINEAR.state_dict()
AVERAGE = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
OPTIMIZER = torch.optim.Adam(LINEAR.parameters())
LINEAR(torch.ones(1, 3)).sum().backward()
OPTIMIZER.step()
AVERAGED = {"n_averaged": torch.tensor(3), **{f"module.{name}": tensor for name, tensor in AVERAGE.items()}}
LIGHTNING = {
    "epoch": 3,
    "pytorch-lightning_version": "2.4.0",
    "state_dict": WEIGHTS,
    "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
    "callbacks": {
        "ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.3), "best_model_path": "x"}
    },
    "optimizer_states": [OPTIMIZER.state_dict()],
    "hyper_parameters": {"lr": 0.1},
}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"net": WEIGHTS, "acc": 91.2, "epoch": 3}, WEIGHTS),
        ({"state_dict": WEIGHTS, "optimizer": OPTIMIZER.state_dict(), "rng": torch.get_rng_state()}, WEIGHTS),
        ({"model": {"state_dict": WEIGHTS}, "optimizer": {"named": OPTIMIZER.state_dict()}}, WEIGHTS),
        ({"weights": WEIGHTS, "metrics": {"loss": torch.tensor(0.3)}, "rng": {"cpu": torch.get_rng_state()}}, WEIGHTS),
        ({"weights": dict(LINEAR.named_parameters())}, WEIGHTS),
        (AVERAGED, AVERAGE),
        (LIGHTNING, WEIGHTS),
        ({"state_dict": WEIGHTS, "state_dict_ema": AVERAGE}, AVERAGE),
        ({"model": WEIGHTS, "ema": {"module": AVERAGED}}, AVERAGE),
    ],
)
def test_the_state_dict_in_a_dictionary_is_found(tmp_path: Path, content: Any, expected: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "x.pth")
    stored = read_model(tmp_path / "x.pth")
    assert same_tensors(stored.weights, expected)
    assert not any(tensor.requires_grad for tensor in stored.weights.values())
    assert (stored.step, stored.checkpoint) == (None, {})


def test_one_of_several_state_dicts_is_taken_by_its_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.pth"
    torch.save({"generator": WEIGHTS, "other": {"critic": AVERAGE}}, path)
    with pytest.raises(
        ValueError,
        match=r"x\.pth: contains several state dicts: generator, other\.critic; take one by read_model\(path, k",
    ):
        read_model(path)
    assert same_tensors(read_model(path, key="other.critic").weights, AVERAGE)
    with pytest.raises(ValueError, match=r"x\.pth: key='critic': there is no such state dict; there are: generator, o"):
        read_model(path, key="critic")
    torch.save({"model": WEIGHTS, "model_ema": AVERAGE}, path)
    with caplog.at_level("INFO"):
        assert same_tensors(read_model(path).weights, AVERAGE)
    assert "took the moving average model_ema of model, model_ema; read_model(path, key=...) takes" in caplog.text
    assert same_tensors(read_model(path, key="model").weights, WEIGHTS)
    torch.save({"model": WEIGHTS, "ema": {"w": torch.zeros(7)}}, path)  # the average of something else
    with pytest.raises(ValueError, match="several state dicts: model, ema"):
        read_model(path)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=4)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
NESTED = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))


@settings(max_examples=60, deadline=None)
@given(
    others=st.lists(st.dictionaries(NAMES, NESTED, max_size=3), min_size=1, max_size=4),
    where=st.lists(NAMES, min_size=4),
)
def test_a_state_dict_is_found_anywhere_or_the_message_has_one_line(
    tmp_path_factory: pytest.TempPathFactory, others: list[dict[str, Any]], where: list[str]
) -> None:
    """Beside numbers, texts and containers of them, in as many dictionaries as there are others."""
    path = tmp_path_factory.mktemp("any") / "x.pth"
    content: Any = WEIGHTS
    for name, other in zip(where, others, strict=False):
        content = {**other, name: content}
    torch.save(content, path)
    assert same_tensors(read_model(path).weights, WEIGHTS)
    torch.save(others[0], path)
    with pytest.raises(ValueError, match=r"x\.pth: contains no model: ") as caught:
        read_model(path)
    assert str(caught.value).isprintable()


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


def test_safetensors_are_recognized_by_their_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in_safetensors(monkeypatch)
    from safetensors.torch import save

    (tmp_path / "x.pth").write_bytes(save(WEIGHTS))
    stored = read_model(tmp_path / "x.pth").weights
    assert same_tensors(dict(sorted(stored.items())), dict(sorted(WEIGHTS.items())))
