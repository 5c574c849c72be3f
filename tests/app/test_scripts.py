"""The scripts beside the training: a checkpoint verified, the error of the gradient measured."""

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from composing import ROOT, composed
from running import SMALL, run_in_process

from fullbatch.app import gradient_error
from fullbatch.app.gradient_error import VARIANTS, Variant, measure, relative_errors
from fullbatch.settings.parse import to_tree
from fullbatch.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

NAMED = "impl.checkpoint.name=mine"
DATA = ["data=digits", "data.size=60", "data.batch_size=20", "model=resnet20", "model.width=4", "impl.threads=1"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    def run(name: str, *arguments: str) -> int:
        return run_in_process(monkeypatch, tmp_path, *arguments, script=ROOT / f"{name}.py")

    return run


def numbers_of(shown: str, row: str) -> list[float]:
    (line,) = [line for line in shown.splitlines() if row in line]
    return [float(number) for number in re.findall(r"\d\.\d+", line)]


def test_a_checkpoint_is_what_it_recorded(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["hyp.evaluate_ema=True", "hyp.test_time_flips=True", "hyp.recalibrate_batchnorm=True"]
    assert script("train_with_gradient_descent", *SMALL, *changes, NAMED) == 0
    row = load_checkpoint(tmp_path / "checkpoints" / "mine.pth")["state"]["rows"][-1]
    content = (tmp_path / "checkpoints" / "mine.pth").read_bytes()
    capsys.readouterr()
    assert script("verify_model_checkpoint", NAMED) == 0  # data, model and hyperparameters are the checkpoint's
    shown = capsys.readouterr().out
    assert "mine, 4 steps" in shown
    for key in ("valid_loss", "valid_acc"):
        assert numbers_of(shown, key) == pytest.approx([row[key], row[key]], abs=1e-6)
    assert script("verify_model_checkpoint", NAMED, "hyp.evaluate_ema=False") == 0
    shown = capsys.readouterr().out
    assert "not as in the checkpoint: hyp.evaluate_ema: True there, False here" in shown
    now, recorded = numbers_of(shown, "valid_loss")
    assert now != recorded
    assert (tmp_path / "checkpoints" / "mine.pth").read_bytes() == content
    assert len(list((tmp_path / "tables").glob("*.csv"))) == 1


@pytest.mark.parametrize("kind", ["list of five", "weights"])
def test_a_file_of_another_program_is_evaluated_as_the_command_line_says(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    assert script("train_with_gradient_descent", *SMALL, NAMED) == 0
    state = load_checkpoint(tmp_path / "checkpoints" / "mine.pth")["state"]
    weights = {f"module.{name}": tensor for name, tensor in state["model"].items()}
    content = [state["optimizer"], weights, {}, {}, 4] if kind == "list of five" else weights
    torch.save(content, tmp_path / "checkpoints" / "theirs.pth")
    capsys.readouterr()
    theirs = "impl.checkpoint.name=theirs"
    assert script("verify_model_checkpoint", *SMALL, theirs) == 0
    shown = capsys.readouterr().out
    assert "theirs.pth: a file of another program; data and model are those of the command line" in shown
    assert ("theirs, 4 steps" if kind == "list of five" else "theirs, unknown steps") in shown
    row = state["rows"][-1]
    for key in ("valid_loss", "valid_acc"):
        assert numbers_of(shown, key) == pytest.approx([row[key]], abs=1e-6)
    assert script("verify_model_checkpoint", *SMALL, theirs, "model.width=8") == 2
    assert "theirs: the weights are those of another model" in capsys.readouterr().err


ODD = {
    "sparse": lambda t: [{}, {"1.weight": t.to_sparse(), "1.bias": t[:, 0]}, {}, {}, 2],
    "torch.int64": lambda t: [{}, {"1.weight": t.long(), "1.bias": t[:, 0].clone()}, {}, {}, 2],
    "far more than its": lambda t: [{}, {"1.weight": torch.zeros(1).expand(10**6, 10**6)}, {}, {}, 2],
    "not finite": lambda t: [{}, {"1.weight": t / 0, "1.bias": t[:, 0].clone()}, {}, {}, 2],
}
"""Part of a message -> weights [10, 64] and zeros in a file that cannot be used."""


@pytest.mark.parametrize("name", ["train_with_gradient_descent", "verify_model_checkpoint", "crunch_loss_landscape"])
def test_every_script_refuses_odd_weights_in_one_line(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = tmp_path / "checkpoints" / "mine.pth"
    path.parent.mkdir()
    for message, content in ODD.items():
        torch.save(content(torch.zeros(10, 64)), path)
        stored = path.read_bytes()
        capsys.readouterr()
        assert script(name, *(a for a in SMALL if "model" not in a), "model=linear", NAMED) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "lacks" not in line]
        assert re.match(rf"\S*mine(\.pth)?: .*{message}", line)
        assert path.read_bytes() == stored


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "impl.checkpoint.name: blank; give the name or the path of the checkpoint to evaluate"),
        (["impl.checkpoint.name=yours"], "impl.checkpoint.name=yours: there is no file checkpoints/yours.pth"),
    ],
)
def test_a_checkpoint_must_be_there(
    script: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert script("verify_model_checkpoint", *arguments) == 2
    assert capsys.readouterr().err.strip() == message


def test_relative_errors_are_those_of_vectors() -> None:
    exact = [torch.tensor([3.0, 4.0]), torch.tensor([[0.0]])]
    gradient = [torch.tensor([3.0, 4.5]), torch.tensor([[-0.5]])]
    assert relative_errors(gradient, exact) == pytest.approx((1 / 7, 0.5**0.5 / 5, 0.5 / 4))


def test_the_error_of_the_gradient_is_that_of_its_numbers() -> None:
    low = [replace(variant, needs="cpu") for variant in VARIANTS if "float16" in variant.name]  # slow, yet possible
    rows = {row["variant"]: row for row in measure(to_tree(composed(*DATA)), variants=[*VARIANTS[:4], *low])}
    assert 0 < rows["float32"]["l2"] < 1e-4
    assert rows["float32, run to run"]["l2"] == 0
    assert rows["float32, sums in float64"]["l2"] < 1e-4
    assert 1e-3 < rows["bfloat16 autocast"]["l2"] < 0.5
    assert 1e-4 < rows["float16 autocast, scaled losses"]["l2"] < 0.7 * rows["bfloat16 autocast"]["l2"]
    exact = Variant("float64", gradient_error.FLOAT64)
    assert [row["l2"] for row in measure(to_tree(composed(*DATA)), variants=[exact])] == [0.0]


def test_the_checkpoint_s_weights_are_measured(script: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    def loss_gradient(*arguments: str) -> float:
        gradients = []
        monkeypatch.setattr(gradient_error, "relative_errors", lambda gradient, _: gradients.append(gradient) or errors)
        list(measure(to_tree(composed(*DATA, *arguments)), variants=[Variant("any")]))
        return float(gradients[0][0].norm())

    errors = gradient_error.Errors(0.0, 0.0, 0.0)
    assert script("train_with_gradient_descent", *SMALL, NAMED) == 0
    assert loss_gradient(NAMED) != loss_gradient()


@pytest.mark.slow
def test_the_table_is_printed_and_written(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linear = [argument for argument in DATA if not argument.startswith("model")]
    assert script("measure_floating_point_accuracy", *linear, "model=linear") == 0
    shown = capsys.readouterr()
    (path,) = (tmp_path / "outputs").rglob("floating_point_accuracy.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    there = {row["variant"] for row in rows} | set(re.findall(r"^(.*): not supported here", shown.err, re.MULTILINE))
    assert there >= {variant.name for variant in VARIANTS}
    assert all(row["variant"] in shown.out for row in rows)
    assert all(float(row["l2"]) < 0.1 for row in rows)


def test_only_what_may_fail_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def broken(model: torch.nn.Module) -> torch.nn.Module:
        raise RuntimeError("no compiler")

    tree = to_tree(composed(*DATA))
    assert list(measure(tree, variants=[Variant("fragile", prepare=broken, may_fail=True)])) == []
    assert list(measure(tree, variants=[Variant("elsewhere", needs="tpu")])) == []
    assert "fragile: not supported here (no compiler)" in caplog.text
    assert "elsewhere: not supported here (needs tpu)" in caplog.text
    with pytest.raises(RuntimeError, match="no compiler"):
        list(measure(tree, variants=[Variant("sound", prepare=broken)]))
