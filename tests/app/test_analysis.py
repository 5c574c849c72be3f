"""The analysis of a run, on the command line."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from composing import composed
from running import SMALL, rows_of, run_in_process

from fullbatch.settings.parse import parse

pytestmark = pytest.mark.slow

EVERYTHING = [
    *(f"analysis.compute_{name}=True" for name in ("gradient_SNR", "gradient_noise_scale", "gradient_curvature")),
    *("analysis.compute_flatness=True", "analysis.flatness_max_steps=2", "analysis.flatness_directions=2"),
    *("analysis.compute_worst_case=True", "analysis.sample_gradient_norms=eval", "analysis.sharpness.every=2"),
    *("analysis.sharpness.max_matvecs=6", "analysis.sharpness.trace_matvecs=6", "analysis.save_model_every_nth_step=2"),
]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    return lambda *arguments: run_in_process(monkeypatch, tmp_path, *SMALL, *arguments)


def folder(tmp_path: Path) -> Path:
    (run_folder,) = tmp_path.glob("outputs/*/*")
    return run_folder


def table(tmp_path: Path) -> list[dict[str, str]]:
    return rows_of(folder(tmp_path) / "table_default_convergence_results.csv")


@pytest.mark.parametrize("name", ["none", "final", "limited", "full", "edge_of_stability"])
def test_the_defaults_are_those_that_are_promised(name: str) -> None:
    analysis = parse(composed("hyp=fb1", f"analysis={name}")).analysis
    every = {"none": 10_000_000, "final": 300, "limited": 1, "full": 1, "edge_of_stability": 50}
    assert analysis.type == name
    assert analysis.check_every_nth_step == every[name]
    assert analysis.measure_param_norm == analysis.measure_grad_norm == (name != "none")
    assert analysis.check_momentum == (name in ("limited", "full"))
    assert analysis.record_gradient_norm_per_batch == (name == "full")
    assert analysis.internal_batch_size_chunks == 1
    switches = analysis.compute_gradient_SNR, analysis.compute_gradient_noise_scale, analysis.compute_flatness
    assert not any(switches)
    assert (analysis.flatness_step_size, analysis.flatness_threshold, analysis.flatness_norm) == (0.1, 1.0, "filter")
    assert analysis.save_model_every_nth_step is None
    assert analysis.sharpness.every == (50 if name == "edge_of_stability" else None)


def test_full_has_statistics_for_every_step(script: Callable[..., int], tmp_path: Path) -> None:
    assert script("analysis=full") == 0
    rows = table(tmp_path)
    for column in ("param_norm_after", "full_grad_norm_after", "momentum_alignment", "sub_batch_grad_norm_max"):
        assert [bool(row[column]) for row in rows] == [True] * 4
    with (folder(tmp_path) / "table_default_analysis.csv").open(newline="") as file:
        noted = list(csv.DictReader(file, delimiter="\t"))
    assert {row["quantity"] for row in noted} == {"sub_batch_grad_norm", "layer_grad_norm", "layer_param_norm"}
    assert {row["step"] for row in noted} == {"1", "2", "3", "4"}


def test_final_is_about_the_last_step(script: Callable[..., int], tmp_path: Path) -> None:
    assert script("analysis=final") == 0
    assert [bool(row["full_grad_norm_after"]) for row in table(tmp_path)] == [False, False, False, True]


def test_the_edge_of_stability_is_drawn(script: Callable[..., int], tmp_path: Path) -> None:
    assert script("analysis=edge_of_stability", "analysis.sharpness.every=2", "analysis.sharpness.max_matvecs=8") == 0
    rows = table(tmp_path)
    assert [bool(row["sharpness"]) for row in rows] == [False, True, False, True]
    assert float(rows[3]["stability_threshold"]) == pytest.approx(3.8 / (2.8 * float(rows[3]["lr"])))
    assert (folder(tmp_path) / "sharpness_default.png").read_bytes().startswith(b"\x89PNG")
    described = json.loads((folder(tmp_path) / "analysis_default.json").read_text())
    assert "gradient regularizer excluded" in described["sharpness"]
    assert "regularizer is no part of it" in (folder(tmp_path) / "log.txt").read_text()


def test_everything_at_once_changes_nothing(script: Callable[..., int], tmp_path: Path) -> None:
    """Both runs in one table: the columns of the run without are equal, to the last bit."""
    assert script("name=plain") == 0
    assert script("name=watched", "analysis=full", *EVERYTHING) == 0
    plain, watched = (
        rows_of(next(tmp_path.glob(f"outputs/*/*/table_{name}_convergence_results.csv")))
        for name in ("plain", "watched")
    )
    for ours, theirs in zip(watched, plain, strict=True):
        assert {name: ours[name] for name in theirs if not name.endswith("_time")} == {
            name: value for name, value in theirs.items() if not name.endswith("_time")
        }
    assert all(watched[3][name] for name in ("flatness", "worst_case", "m_sharpness", "grad_noise", "hessian_trace"))
    assert len(list(tmp_path.glob("outputs/*/*/models/step_*.pth"))) == 2


def test_a_dry_run_probes_once_and_leaves_nothing(script: Callable[..., int], tmp_path: Path) -> None:
    assert script("analysis=full", "dryrun=True", *EVERYTHING) == 0
    assert {path.name for path in folder(tmp_path).iterdir()} == {"log.txt"}


@pytest.mark.distributed
def test_two_processes_measure_what_one_does(script: Callable[..., int], tmp_path: Path) -> None:
    """Each measures for itself; the first one writes."""
    probes = ["analysis=full", "analysis.compute_gradient_SNR=True", "analysis.sharpness.every=2", "hyp.steps=2"]
    assert script("name=alone", *probes) == 0
    assert script("name=two", *probes, "impl/setup=distributed", "impl.setup.processes_per_node=2") == 0
    alone, two = (
        rows_of(next(tmp_path.glob(f"outputs/*/*/table_{name}_convergence_results.csv"))) for name in ("alone", "two")
    )
    for ours, theirs in zip(two, alone, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("full_grad_norm_after", "grad_SNR", "momentum_alignment", "sub_batch_grad_norm_max", "sharpness"):
            assert bool(ours[name]) == bool(theirs[name])
            if ours[name]:
                assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-3)
    assert len(list(tmp_path.glob("outputs/*/*/table_two_analysis.csv"))) == 1
