"""A run that is forked from the checkpoint of another one, with other settings."""

import csv
import json
from pathlib import Path

import pytest
import torch
from composing import settings_for
from running import run_in_process

from fullbatch.build.trainer import build_training
from fullbatch.models.model_file import read_model

TINY = (
    *("data=digits", "data.size=60", "data.valid_size=40", "data.batch_size=20", "model=resnet20", "model.width=4"),
    *("hyp=fb1", "hyp.warmup=0", "hyp.scheduler=", "seed=1", "impl.device=cpu", "impl.threads=1"),
    "impl.validate_every_nth_step=1",
)
TIMES = ("train_time", "valid_time", "analysis_time")


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> int:
    return run_in_process(monkeypatch, folder, *TINY, *overrides)


def test_a_fork_equals_a_continuation_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changed = ["hyp.optim.lr=0.02", "hyp.optim.momentum=0.8", "hyp.grad_clip=0.5"]
    assert run(monkeypatch, tmp_path, "hyp.steps=2", "name=parent", "impl.checkpoint.name=parent") == 0
    fork = ["hyp.steps=5", "name=fork", "impl.checkpoint.name=fork", "impl.checkpoint.fork_from=parent", *changed]
    assert run(monkeypatch, tmp_path, *fork) == 0

    training = build_training(settings_for(*TINY, "hyp.steps=2"), seed=1)
    training.trainer().run()
    other = build_training(settings_for(*TINY, "hyp.steps=5", *changed), seed=1)
    other.state.model.load_state_dict(training.state.model.state_dict())
    for ours, theirs in zip(other.state.model.parameters(), training.state.model.parameters(), strict=True):
        other.state.optimizer.state[ours] = dict(training.state.optimizer.state[theirs])
    other.state.rows = list(training.state.rows)
    other.trainer().run()

    stored = read_model(tmp_path / "checkpoints" / "fork.pth")
    for name, value in other.state.model.state_dict().items():
        assert torch.equal(stored.weights[name], value), name
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in stored.checkpoint["state"]["rows"]]
    assert rows == [{k: v for k, v in row.items() if k not in TIMES} for row in other.state.rows]

    assert {key: stored.checkpoint["parent"][key] for key in ("path", "step")} == {
        "path": "checkpoints/parent.pth",
        "step": 2,
    }
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("outputs/**/run.json"))]
    assert [record["parent"] and record["parent"]["step"] for record in records] == [None, 2]
    with next(tmp_path.glob("tables/table_fb_*_runs.csv")).open(newline="") as file:
        parent, forked = csv.DictReader(file, delimiter="\t")
    assert (parent["parent"], forked["parent"], forked["parent_step"]) == ("", "checkpoints/parent.pth", "2")


def test_a_fork_is_continued_like_any_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(monkeypatch, tmp_path, "hyp.steps=2", "impl.checkpoint.name=parent") == 0
    for name, lengths in {"whole": [5], "parts": [3, 5]}.items():
        for steps in lengths:
            fork = [f"hyp.steps={steps}", f"impl.checkpoint.name={name}", "impl.checkpoint.fork_from=parent"]
            assert run(monkeypatch, tmp_path, *fork, "hyp.optim.lr=0.02") == 0
    whole, parts = (read_model(tmp_path / "checkpoints" / f"{name}.pth").weights for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hyp.steps=5", "impl.checkpoint.fork_from=nowhere"], "checkpoints/nowhere.pth: no such file"),
        (["hyp.steps=2", "impl.checkpoint.fork_from=parent"], "hyp.steps=2: the checkpoint that is forked has 2 steps"),
        (
            ["hyp.steps=5", "impl.checkpoint.fork_from=parent", "model.width=8"],
            "of another model (momentum_buffer of parameter 0",
        ),
        (["hyp.steps=5", "impl.checkpoint.fork_from=parent", "hyp/optim=adam"], "the optimizer state is of another"),
        (["hyp.steps=5", "impl.checkpoint.name=parent", "hyp.optim.lr=0.02"], "impl.checkpoint.fork_from continues"),
        (["hyp.steps=5", "impl.checkpoint.fork_from=weights"], "model.weights=FILE starts from weights alone"),
    ],
)
def test_a_mistake_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, tmp_path, "hyp.steps=2", "impl.checkpoint.name=parent") == 0
    torch.save(read_model(tmp_path / "checkpoints" / "parent.pth").weights, tmp_path / "checkpoints" / "weights.pth")
    capsys.readouterr()
    assert run(monkeypatch, tmp_path, *overrides) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
