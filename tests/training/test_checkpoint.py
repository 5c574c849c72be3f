"""Checkpoints: saved and loaded, damaged files refused, runs continued from files of this and of another program."""

import pickle
from pathlib import Path

import pytest
import torch
from original_files import same_tensors, trained, write_list
from small_models import images_for, small
from small_training import trainer
from torch import nn

from fullbatch.models.model_file import read_model
from fullbatch.optim.ema import ExponentialMovingAverage
from fullbatch.runtime.archives import DamagedError
from fullbatch.runtime.files import versions
from fullbatch.runtime.manifests import differences
from fullbatch.training.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    read_newest,
    resume_from,
    save_checkpoint,
    set_damaged_aside,
)
from fullbatch.training.state import TrainState

INPUTS = images_for("resnet")


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    state = trainer().state.state_dict()
    save_checkpoint(path, state, config={"hyp": {"lr": 0.1}}, seed=3, keep=1)
    content = load_checkpoint(path)
    assert (content["config"], content["seed"]) == ({"hyp": {"lr": 0.1}}, 3)
    assert content["state"].keys() == state.keys()
    assert same_tensors(content["state"]["model"], state["model"])


def test_a_truncated_checkpoint_is_reported_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for _ in range(2):
        save_checkpoint(path, trainer().state.state_dict(), config={}, seed=0, keep=1)
    whole = path.read_bytes()
    for cut in (0, 10, 1000, -1000, -1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DamagedError, match=r"x.pth: damaged or truncated .*previous version is .*x.previous.pth$"):
            load_checkpoint(path)
        assert path.read_bytes() == whole[:cut]


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("unpickled",))


@pytest.mark.parametrize("content", [{"weight": torch.zeros(1)}, [1, 2], Evil()])
def test_a_file_of_another_program_is_refused_and_not_run(
    tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"x.pth: (a file of another program|not a checkpoint of this program)"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"x.pth"):
        load_checkpoint(path)
    assert "unpickled" not in capsys.readouterr().out


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"format": "fullbatch checkpoint", "version": 99}, path)
    with pytest.raises(ValueError, match="format 99; this version reads formats 1 and 2"):
        load_checkpoint(path)


def test_the_previous_checkpoint_is_found_if_a_crash_left_only_that(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    assert find_checkpoint(path) is None
    for seed in (1, 2):
        save_checkpoint(path, trainer().state.state_dict(), config={}, seed=seed, keep=1)
    assert find_checkpoint(path) == path
    path.unlink()
    previous = find_checkpoint(path)
    assert previous is not None
    assert load_checkpoint(previous)["seed"] == 1


def test_the_newest_intact_checkpoint_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.pth"
    assert read_newest(path) is None
    for seed in range(4):
        save_checkpoint(path, trainer().state.state_dict(), config={}, seed=seed, keep=2)
    paths = versions(path)
    assert [path.name for path in paths] == ["x.pth", "x.previous.pth", "x.previous1.pth"]
    contents = [path.read_bytes() for path in paths]
    for number in range(3):
        newest = read_newest(path)
        assert newest is not None
        assert newest[0] == paths[number]
        assert newest[1].checkpoint["seed"] == 3 - number
        warnings = [record for record in caplog.records if record.levelname == "WARNING"]
        assert [record.getMessage().split(" (")[0] for record in warnings] == (
            [f"{path}: damaged or truncated"] if number else []
        )
        assert all(record.getMessage().endswith(f"continuing with {newest[0]}") for record in warnings)
        caplog.clear()
        paths[number].write_bytes(contents[number][:-1])
    with pytest.raises(DamagedError, match=r"x\.pth: damaged"):
        read_newest(path)
    paths[2].write_bytes(contents[2])
    set_damaged_aside(path, paths[2])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "x.damaged.pth": contents[0][:-1],
        "x.previous.damaged.pth": contents[1][:-1],
        "x.previous1.pth": contents[2],
    }


def test_differences_name_the_keys() -> None:
    stored, given = {"hyp": {"lr": 0.1, "old": 1}, "model": "a"}, {"hyp": {"lr": 0.2}, "model": "a", "new": 3}
    assert differences(stored, given) == [
        "hyp.lr: 0.1 there, 0.2 here",
        "hyp.old: 1 there, None here",
        "new: None there, 3 here",
    ]


# Continuing


@pytest.fixture
def model() -> nn.Module:
    return small("resnet").double()


def momentum_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def test_a_list_of_five_continues_bitwise(model: nn.Module, tmp_path: Path) -> None:
    write_list(tmp_path / "x.pth", model, trained(model, INPUTS), 3)
    resumed = small("resnet").double()
    state = TrainState(resumed, torch.optim.SGD(resumed.parameters(), lr=7.0, momentum=0.5))
    resume_from(state, read_model(tmp_path / "x.pth"))
    assert state.step == 3
    assert state.rows == [{"step": 1}, {"step": 2}, {"step": 3}]
    (group,) = state.optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (7.0, 0.5)  # hyperparameters are those of this run
    reference = small("resnet").double()
    momenta = trained(reference, INPUTS).state_dict()["state"]
    for index, entry in momenta.items():
        assert torch.equal(state.optimizer.state_dict()["state"][index]["momentum_buffer"], entry["momentum_buffer"])
    assert same_tensors(resumed.state_dict(), reference.state_dict())


def test_without_a_readable_optimizer_state_the_momentum_starts_at_zero(model: nn.Module, tmp_path: Path) -> None:
    write_list(tmp_path / "x.pth", model, trained(model, INPUTS), 3, "unreadable")
    resumed = small("resnet").double()
    state = TrainState(resumed, momentum_sgd(resumed))
    resume_from(state, read_model(tmp_path / "x.pth"))
    assert state.step == 3
    assert not state.optimizer.state_dict()["state"]
    assert same_tensors(resumed.state_dict(), model.state_dict())


def test_an_average_starts_from_the_weights(model: nn.Module, tmp_path: Path) -> None:
    write_list(tmp_path / "x.pth", model, trained(model, INPUTS), 3)
    other = small("resnet").double()
    state = TrainState(other, momentum_sgd(other), ExponentialMovingAverage(other, 0.9))
    resume_from(state, read_model(tmp_path / "x.pth"))
    assert same_tensors(state.ema.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("ema", [False, True])
def test_a_checkpoint_gives_the_weights_that_were_validated(model: nn.Module, tmp_path: Path, ema: bool) -> None:
    state = TrainState(model, trained(model, INPUTS, 1), ExponentialMovingAverage(model, 0.9) if ema else None)
    trained(model, INPUTS, 1)
    state.rows = [{"step": 1, "train_loss": 2.0, "valid_acc": 0.25}, {"step": 2, "train_loss": 1.0}]
    save_checkpoint(tmp_path / "x.pth", state.state_dict(), config={}, seed=3)
    stored = read_model(tmp_path / "x.pth")
    with state.evaluated() as evaluated:
        assert same_tensors(stored.weights, evaluated.state_dict())
    assert same_tensors(stored.weights, model.state_dict()) != ema
    assert (stored.step, stored.checkpoint["seed"]) == (2, 3)
    other = small("resnet").double()
    resumed = TrainState(other, trained(other, INPUTS, 0), ExponentialMovingAverage(other, 0.9) if ema else None)
    resume_from(resumed, stored)
    assert resumed.rows == state.rows
    assert same_tensors(other.state_dict(), model.state_dict())


def test_weights_alone_are_not_continued(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "x.pth")
    stored = read_model(tmp_path / "x.pth")
    assert same_tensors(stored.weights, model.state_dict())
    with pytest.raises(ValueError, match="a file of another program that holds only weights"):
        resume_from(TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1)), stored)


def test_another_model_or_optimizer_is_refused(model: nn.Module, tmp_path: Path) -> None:
    write_list(tmp_path / "x.pth", model, trained(model, INPUTS), 3)
    stored = read_model(tmp_path / "x.pth")
    wide = small("resnet", width=8).double()
    with pytest.raises(
        ValueError,
        match=r"another model: \d+ entries differ \(stem\.0\.weight: \(8, 3, 3, 3\) here, \(4, 3, 3, 3\) there; ",
    ):
        resume_from(TrainState(wide, momentum_sgd(wide)), stored)
    with pytest.raises(ValueError, match=r"of another optimizer \(only one of the two has 'momentum'\)"):
        resume_from(TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.1)), stored)
    parameters = list(model.parameters())
    groups = [{"params": parameters[:5]}, {"params": parameters[5:]}]
    with pytest.raises(ValueError, match=r"has groups of \[65\] parameters, the optimizer here \[5, 60\]"):
        resume_from(TrainState(model, torch.optim.SGD(groups, lr=0.1, momentum=0.9)), stored)
    assert stored.optimizer is not None
    stored.optimizer["state"][4]["momentum_buffer"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"of another model \(momentum_buffer of parameter 4: \[3\] there, \[4\] here"):
        resume_from(TrainState(model, momentum_sgd(model)), stored)
