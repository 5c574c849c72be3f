"""The columns of tables: each one that a run writes is listed, with what it holds."""

import json
from pathlib import Path

import pytest
from running import rows_of, run_in_process

from fullbatch.objective.flops import Flops
from fullbatch.results.columns import RUN_COLUMNS, STEP_COLUMNS, Kind, is_setting
from fullbatch.settings.parse import read_settings
from fullbatch.training import cost

RUNS = {
    "plain": ["hyp=fb1"],
    "searched": ["hyp=fb1", "hyp/optim=lbfgs", "analysis=full"],
    "diverged": ["hyp=base_sgd", "hyp.optim.lr=1e30"],
}
"""Runs whose tables have all columns."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_column_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tiny = ["data=digits", "data.size=60", "data.valid_size=40", "data.batch_size=20", "model=linear", "seed=1"]
    tiny += ["hyp.steps=2", "hyp.warmup=0", "impl.device=cpu", "impl.threads=1", "hydra.run.dir=run"]
    monkeypatch.setattr(cost.speed, "__kwdefaults__", {"processes": 1, "min_seconds": 0.0})  # there is a peak_share
    monkeypatch.setattr(cost, "flops_of", lambda *_: Flops(1, 1))
    monkeypatch.setattr(cost, "matmul_peak", lambda *_: 1.0)
    assert run_in_process(monkeypatch, tmp_path, *tiny, *RUNS[name]) == (3 if name == "diverged" else 0)
    (row,) = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    tree = read_settings(tmp_path / "run" / "config.yaml")
    settings = {key.removeprefix("hyp.") for key in tree if key.startswith("hyp.")}
    assert row.keys() <= RUN_COLUMNS.keys() | settings
    assert {key for key in row if is_setting(key)} == {
        *(settings - {"template_name"}),
        *("model", "optimizer", "stoch", "augmentations", "size", "batch_size"),
    }
    assert name == "diverged" or {"peak_share", "samples_per_second"} <= row.keys()
    probes = tmp_path / "run" / "analysis_default.json"
    described = json.loads(probes.read_text()) if probes.exists() else {}
    (steps,) = tmp_path.glob("run/table_*_convergence_results.csv")
    assert set(steps.read_text().splitlines()[0].split("\t")) <= STEP_COLUMNS.keys() | described.keys()


def test_columns_have_meanings_and_fractions_are_results() -> None:
    for column in [*RUN_COLUMNS.values(), *STEP_COLUMNS.values()]:
        assert column.meaning
        assert not column.meaning.endswith(".")
        assert not column.unit or column.kind is Kind.RESULT
