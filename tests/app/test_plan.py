"""`plan=True` prints the cost of a run and writes nothing."""

import re
from pathlib import Path

import pytest
from running import SMALL, Script, run_in_process

pytestmark = pytest.mark.slow

ARGUMENTS = [argument for argument in SMALL if not argument.startswith("seed")]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    return lambda *arguments: run_in_process(monkeypatch, tmp_path, *ARGUMENTS, "plan=True", *arguments)


def lines(shown: str) -> dict[str, str]:
    return {key.strip(): text.strip() for key, text in re.findall("│([^│]+)│([^│]+)│", shown)}


def test_the_plan_of_a_regularized_run(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("name=mine", "impl.checkpoint.name=mine", "impl.validate_every_nth_step=2") == 0
    shown = capsys.readouterr().out
    assert "plan of mine: nothing is trained" in shown
    plan_lines = lines(shown)
    assert plan_lines["samples"] == "60 in 3 blocks, 3 sub-batches"
    assert plan_lines["one step"] == "full batch: 1 updates, 2 gradient evaluations"
    assert plan_lines["the run"] == "4 steps, 8 evaluations, 3 validations"
    assert {
        "operations",
        "model",
        "one evaluation",
        "images",
        "speed",
        "one step takes",
        "the run takes",
    } <= plan_lines.keys()
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["hyp.train_stochastic=True", "hyp.blocks_per_update=2"], "stochastic: 2 updates, 2 gradient"),
        (["hyp.grad_reg.block_strength=0", "hyp/optim_modification=SAM"], "full batch: 1 updates, 2 gradient"),
        (["hyp.grad_reg.acc_strength=0.1"], "full batch: 1 updates, 3 gradient"),
        (
            ["hyp.grad_reg.block_strength=0", "hyp/optim=lbfgs"],
            "full batch: .*evaluations, [1-9]\\d* losses",
        ),
    ],
)
def test_evaluations_are_those_that_a_step_takes(
    script: Script, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(*arguments) == 0
    assert re.match(expected, lines(capsys.readouterr().out)["one step"])


def test_the_rounds_of_a_data_base_are_counted_and_none_is_built(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("data/db=LMDB", "data.db.rounds=10", f"data.db.path={tmp_path / 'frozen'}") == 0
    assert lines(capsys.readouterr().out)["samples"] == "600 in 30 blocks, 30 sub-batches"
    assert not (tmp_path / "frozen").exists()


def test_mistakes_are_reported(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("data.size=6000") == 2
    assert "data.size=6000" in capsys.readouterr().err


def test_a_step_that_diverges_has_no_plan(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("hyp=fb1", "hyp.optim.lr=1e38") == 3
    shown = capsys.readouterr()
    assert "no plan, because the step that was timed diverged: step" in shown.err
    assert "Traceback" not in shown.err + shown.out
