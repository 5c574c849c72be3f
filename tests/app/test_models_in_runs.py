"""Models and foreign files in runs as users start them."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from composing import settings_for
from running import SMALL, Script, rows_of, run_in_process

from fullbatch.build.problem import build_problem
from fullbatch.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    return lambda *arguments: run_in_process(monkeypatch, tmp_path, *SMALL, *arguments)


# Files of the paper's code


def as_list_of_five(script: Script, folder: Path, steps: int, name: str = "theirs") -> None:
    """Train for some steps and write the result as the paper's code would."""
    assert script("impl.checkpoint.name=ours", f"hyp.steps={steps}", "hyp.scheduler=") == 0
    state = load_checkpoint(folder / "checkpoints" / "ours.pth")["state"]
    content = [state["optimizer"], state["model"], {"last_epoch": steps}, {}, steps]
    torch.save(content, folder / "checkpoints" / f"{name}.pth")


@pytest.mark.slow
def test_a_list_of_five_is_resumed_with_a_note(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_list_of_five(script, tmp_path, 2)
    original = (tmp_path / "checkpoints" / "theirs.pth").read_bytes()
    capsys.readouterr()
    assert script("impl.checkpoint.name=theirs", "hyp.scheduler=", "name=resumed") == 0
    shown = capsys.readouterr()
    assert "checkpoints/theirs.pth: a file of another program, kept as checkpoints/theirs.original.pth; it lacks" in (
        shown.err
    )
    assert "the table of the steps so far, the seed, the configuration, an average of the weights" in shown.err
    assert "continuing after step 2 from checkpoints/theirs.pth" in shown.out
    assert (tmp_path / "checkpoints" / "theirs.original.pth").read_bytes() == original
    rows = rows_of(next((tmp_path / "outputs").rglob("table_resumed_*.csv")))
    assert [(row["step"], bool(row["train_loss"])) for row in rows] == [
        ("1", False),
        ("2", False),
        ("3", True),
        ("4", True),
    ]
    torch.save(
        [*torch.load(tmp_path / "checkpoints" / "theirs.original.pth")[:4], 1], tmp_path / "checkpoints/theirs.pth"
    )
    assert script("impl.checkpoint.name=theirs", "hyp.scheduler=") == 2
    assert "theirs.original.pth: in the way of checkpoints/theirs.pth" in capsys.readouterr().err
    (tmp_path / "checkpoints" / "theirs.pth").write_bytes(original)
    assert script("impl.checkpoint.name=theirs", "hyp.scheduler=") == 0
    assert script("impl.checkpoint.name=ours", "hyp.scheduler=") == 0
    resumed, uninterrupted = (
        load_checkpoint(tmp_path / "checkpoints" / f"{n}.pth")["state"] for n in ("theirs", "ours")
    )
    assert all(torch.equal(resumed["model"][key], value) for key, value in uninterrupted["model"].items())
    assert script("impl.checkpoint.name=theirs", "hyp.scheduler=", "hyp.steps=5") == 0  # now a checkpoint of ours


def test_a_finished_list_of_five_is_evaluated(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_list_of_five(script, tmp_path, 4)
    (expected,) = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    capsys.readouterr()
    assert script("impl.checkpoint.name=theirs", "hyp.scheduler=") == 0
    shown = capsys.readouterr().out
    assert "this run has finished before (all 4 steps are taken)" in shown
    assert re.search(rf"max_val_acc[^\d]*{float(expected['valid_acc']):.2%}", shown)


def test_a_list_of_five_of_another_model_is_refused(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_list_of_five(script, tmp_path, 2)
    content = (tmp_path / "checkpoints" / "theirs.pth").read_bytes()
    for change, message in (
        (
            ["model.width=8"],
            r"theirs\.pth: the weights are those of another model: \d+ entries differ \(stem\.0\.weight",
        ),
        (["hyp/optim=adam"], r"theirs\.pth: the optimizer state is of another optimizer"),
    ):
        assert script("impl.checkpoint.name=theirs", *change) == 2
        assert re.search(message, capsys.readouterr().err)
    assert (tmp_path / "checkpoints" / "theirs.pth").read_bytes() == content
    assert not (tmp_path / "checkpoints" / "theirs.original.pth").exists()
    torch.save(torch.load(tmp_path / "checkpoints" / "theirs.pth")[1], tmp_path / "checkpoints" / "weights.pth")
    assert script("impl.checkpoint.name=weights") == 2
    assert "weights.pth: a file of another program that holds only weights" in capsys.readouterr().err


def test_code_in_the_place_of_a_checkpoint_is_refused(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path}/was_here",)

    (tmp_path / "checkpoints").mkdir()
    torch.save([{}, {"w": torch.zeros(1)}, {}, Evil(), 2], tmp_path / "checkpoints" / "theirs.pth")
    assert script("impl.checkpoint.name=theirs") == 2
    assert "theirs.pth: not a checkpoint of this program" in capsys.readouterr().err
    assert not (tmp_path / "was_here").exists()


# Models


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model=densenet121 model.depth=122", "model: depth=122: unknown; known: 121, 161, 169, 201"),
        ("model=densenet121 model.stem=round", "model: stem=round: unknown; known: CIFAR, standard, efficient"),
        (
            "model=densenet121 model.normalization=skipinit",
            "model: normalization=skipinit: unknown; known: BatchNorm2d",
        ),
        ("model=vgg16", "model: images of 8 pixels cannot be halved 5 times; needs 32 pixels"),
        ("model=vgg16 model.name=vgg12", "model: depth=12: unknown; known: 11, 13, 16, 19"),
        ("model=vgg16 model.head=round", "model: head=round: unknown; known: CIFAR, TinyImageNet, ImageNet"),
        ("model=pyramidnet110 model.depth=109", "model: depth=109: should be 2 plus a multiple of 6"),
        ("model=nfn", "model: images of 8 pixels vanish in the stem CIFAR"),
        ("model=nfn model.variant=F9", "model: variant=F9: unknown; known: F0"),
        ("model=torchvision model.name=resnet19", "model: name=resnet19: not a classifier of torchvision; similar"),
        ("model=torchvision model.name=alexnet", r"model: name=alexnet: fails on images \[1, 1, 8, 8\]"),
        ("model=import model.target=torch.nn:Identity", r"to \[1, 1, 8, 8\] instead of \[1, 10\]"),
        (
            "model=import model.target=no.such:thing",
            "model: target=no.such:thing: importing no.such failed: ModuleNotFoundError: No module named 'no'",
        ),
    ],
)
def test_a_mistake_with_a_model_is_one_line(arguments: str, message: str) -> None:
    others = [argument for argument in SMALL if not argument.startswith("model")]
    with pytest.raises(ValueError, match=message) as refused:
        build_problem(settings_for(*others, *arguments.split()), seed=0)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("model=densenet121 hyp.steps=1", "densenet121"),
        ("model=pyramidnet110 model.depth=8 model.alpha=6", "pyramidnet8"),
        ("model=torchvision model.name=shufflenet_v2_x0_5 hyp.steps=2", "shufflenet_v2_x0_5"),
        ("model=import model.target=own:build", "own:build"),
    ],
)
def test_models_of_every_origin_train(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: str, name: str
) -> None:
    monkeypatch.delitem(sys.modules, "own", raising=False)
    body = "from torch import nn\ndef build(channels, classes):\n    "
    body += "return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, classes))\n"
    (tmp_path / "own.py").write_text(body)
    others = [argument for argument in SMALL if not argument.startswith("model")]
    assert run_in_process(monkeypatch, tmp_path, *others, *arguments.split()) == 0
    (run,) = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    assert run["model"] == name
