"""Checkpoints by name and by path: the same file for training, verification and landscapes, in any working folder."""

import re
from pathlib import Path

import pytest
from composing import ROOT, settings_for
from running import rows_of, run_in_process

from fullbatch.app.paths import RunPaths
from fullbatch.training.checkpoint import checkpoint_path

LINEAR = [
    *("data=digits", "data.size=60", "data.valid_size=40", "data.batch_size=20", "model=linear", "hyp=fb1", "seed=1"),
    *("hyp.warmup=1", "hyp.scheduler=", "impl.device=cpu", "impl.threads=1"),
]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("checkpoints/old", "runs", "both"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("runs/a.pth", "runs/b", "runs/c.previous.pth", "checkpoints/old/a.pth", "checkpoints/runs"):
        (tmp_path / file).touch()
    return tmp_path


MEANINGS = {
    "a": "checkpoints/a.pth",
    "lr0.1": "checkpoints/lr0.1.pth",
    "a.pt": "checkpoints/a.pt",
    "./a": "a.pth",
    "runs/a": "runs/a.pth",
    "runs/a.pth": "runs/a.pth",
    "runs/b": "runs/b",  # a file without a suffix
    "runs/new": "runs/new.pth",
    "runs/c": "runs/c.pth",
    "old/a": "checkpoints/old/a.pth",  # of an earlier version
    "../x.pth": "../x.pth",
}


def test_a_separator_makes_a_path(launch: Path) -> None:
    assert {name: str(checkpoint_path(name)) for name in MEANINGS} == MEANINGS
    assert checkpoint_path(f"{launch}/runs/a") == launch / "runs" / "a.pth"
    assert checkpoint_path("~/a.pth") == Path.home() / "a.pth"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere/a",
            r"a path, but there is no folder nowhere; accepted: a path in an",
        ),
        ("./runs", r"a folder; give a file in it, such as \./runs/checkpoint\.pth"),
        ("runs/b", r"a run writes checkpoints of its own kind; accepted: \.pth, \.pt"),
    ],
)
def test_a_path_where_no_checkpoint_can_be_is_refused(launch: Path, name: str, message: str) -> None:
    run = settings_for("data=digits", f"impl.checkpoint.name={name}")
    with pytest.raises(ValueError, match=f"^impl\\.checkpoint\\.name={re.escape(name)}: {message}"):
        RunPaths.of(run, launch / "run")
    for usable in ("checkpoints/new/a", "runs/new", "new"):
        RunPaths.of(settings_for("data=digits", f"impl.checkpoint.name={usable}"), launch / "run")


@pytest.mark.slow
def test_one_path_for_training_verification_and_landscape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(*arguments: str, name: str = "train_with_gradient_descent") -> str:
        assert run_in_process(monkeypatch, tmp_path, *arguments, script=ROOT / f"{name}.py") == 0
        return capsys.readouterr().out

    script(*LINEAR, "hyp.steps=2")
    (path,) = (tmp_path / "outputs").glob("*/*/checkpoint.pth")
    relative = path.relative_to(tmp_path)
    for steps, name in ((3, relative), (4, path)):
        shown = script(*LINEAR, f"hyp.steps={steps}", f"impl.checkpoint.name={name}", "hydra.job.chdir=True")
        assert f"continuing after step {steps - 1} from {name}" in shown
    assert "4 steps" in script(f"impl.checkpoint.name={relative}", name="verify_model_checkpoint")
    landscape = ["viz.coordinates.x.num=3", "viz.formats=csv", "impl.device=cpu", "impl.threads=1"]
    script(f"impl.checkpoint.name={path}", *landscape, "hydra.job.chdir=True", name="crunch_loss_landscape")
    assert (path.parent / "checkpoint.landscape" / "data.mdb").exists()
    shown = script(*LINEAR, "hyp.steps=1", "impl.checkpoint.name=./new", "hydra.job.chdir=True")
    assert "new.pth: there is no such file yet; the run begins" in shown
    assert (tmp_path / "new.pth").exists()
    (table,) = tmp_path.rglob("table_fb_digits_runs.csv")
    assert table.parent == tmp_path / "tables"
    assert len(rows_of(table)) == 4
