"""The user's code in whole runs: in two processes, and continued from a checkpoint inside a step."""

import csv
from pathlib import Path
from typing import Any

import pytest
from composing import ROOT
from running import SMALL, run_in_process

from fullbatch.models.model_file import read_model
from fullbatch.runtime.stop_requests import StopRequest, StopRequests

PAGE = (ROOT / "docs" / "bring_your_own.md").read_text(encoding="utf-8")
OWN = [
    *("model=import", "model.target=my_code:build", "model.args={width: 4}", "hyp.loss_target=my_code:hinge"),
    *("hyp/optim=import", "hyp.optim.target=my_code:Halving", "hyp.transforms=[my_code:centralize]"),
    *("analysis.probes=[my_code:largest_weight]", "analysis.check_every_nth_step=1", "impl.dtype=double"),
]
OTHERS = [line for line in SMALL if not line.startswith(("model", "hyp=gradreg", "hyp.optim"))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    code = PAGE.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "my_code.py").write_text(code, encoding="utf-8")
    return tmp_path


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    table = max(folder.glob(f"outputs/**/table_{name}_convergence_results.csv"))
    with table.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> int:
    return run_in_process(monkeypatch, folder, *OTHERS, "hyp=fb1", "hyp.steps=3", "hyp.warmup=0", *OWN, *overrides)


@pytest.mark.distributed
def test_two_processes_use_the_code_of_the_user(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    two = ["impl/setup=distributed", "impl.setup.processes_per_node=2"]
    assert [run(monkeypatch, folder, "name=one"), run(monkeypatch, folder, "name=two", *two)] == [0, 0]
    for one, other in zip(rows(folder, "one"), rows(folder, "two"), strict=True):
        assert "lr" not in one or not one["lr"]
        for key in ("train_loss", "full_loss", "largest_weight", "evaluations"):
            assert float(one[key]) == pytest.approx(float(other[key]), rel=1e-12)


def test_it_continues_inside_a_step(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def stop_once(requests: StopRequests, *_: Any) -> StopRequest:
        calls.append(1)
        return StopRequest.STOP if len(calls) == 5 else StopRequest.NONE

    calls: list[int] = []
    assert run(monkeypatch, folder, "name=whole", "impl.checkpoint.name=whole") == 0
    with monkeypatch.context() as context:
        context.setattr(StopRequests, "pending", lambda requests: True)
        context.setattr(StopRequests, "synchronize", stop_once)
        run(monkeypatch, folder, "name=parts", "impl.checkpoint.name=parts")
    assert read_model(folder / "checkpoints" / "parts.pth").checkpoint["state"]["inside"] is not None
    assert run(monkeypatch, folder, "name=parts", "impl.checkpoint.name=parts") == 0
    times = ("train_time", "valid_time", "analysis_time")
    whole, parts = (
        [{key: value for key, value in row.items() if key not in times} for row in rows(folder, name)]
        for name in ("whole", "parts")
    )
    assert whole == parts
