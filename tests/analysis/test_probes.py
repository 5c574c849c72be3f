"""Probes observe: with all of them on, a run is bitwise the run without, and continues bitwise itself."""

import csv
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from references import assert_no_trace, trace_of
from small_training import trainer
from states import assert_equal_states, run_to, without_times

from fullbatch.analysis.figure import draw_edge_of_stability
from fullbatch.analysis.gradient_statistics import gradient_statistics
from fullbatch.analysis.measurements import (
    FlatnessProbe,
    GradientProbe,
    ParameterNorm,
    SampleGradients,
    WorstCase,
)
from fullbatch.analysis.outputs import Notes, SavedModels, write_columns
from fullbatch.analysis.probes import Probe, Probes
from fullbatch.analysis.sharpness_probe import SharpnessProbe
from fullbatch.build.probes import observed
from fullbatch.tensors import global_norm, trainable
from fullbatch.training.model_file import read_model
from fullbatch.training.state import Row
from fullbatch.training.trainer import Trainer

pytestmark = pytest.mark.slow

PARTS = frozenset({"gradient", "momentum", "snr", "noise_scale", "curvature", "sub_batches"})
ALL: list[Probe] = [
    ParameterNorm(),
    GradientProbe(PARTS, chunks=2),
    SampleGradients(training=False),
    FlatnessProbe(0.5, 3.0, "filter", num_directions=2, max_steps=3, seed=3),
    WorstCase(rho=0.05, m=4),
    SharpnessProbe(top_k=2, tolerance=0.1, max_matvecs=8, trace_matvecs=6, density_vectors=1, density_steps=3),
]


def probed(probes: list[Probe], every: int = 1, **options: object) -> Trainer:
    some = trainer(**options)  # type: ignore[arg-type]
    some.probes = Probes(partial(observed, some), [(every, probe) for probe in probes])
    return some


def rows_of(some: Trainer) -> list[Row]:
    return without_times(some.state.rows)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("probe", ALL, ids=lambda probe: type(probe).__name__)
def test_a_probe_leaves_no_trace(probe: Probe, stochastic: bool) -> None:
    some = run_to(trainer(stochastic=stochastic, shuffle=stochastic), 2)
    model = some.state.model
    before, gradients = trace_of(model), [p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    found = probe(observed(some, some.state, lambda *_: None))
    assert_no_trace(model, before)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(old, p.grad) for old, p in zip(gradients, model.parameters(), strict=True))
    assert found
    assert found.keys() <= probe.columns.keys()


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_run_with_all_probes_is_the_run_without(stochastic: bool) -> None:
    alone, watched = trainer(3, stochastic=stochastic), probed(ALL, steps=3, stochastic=stochastic)
    alone.run()
    watched.run()
    ours, theirs = watched.state.state_dict(), alone.state.state_dict()
    for row, plain in zip(ours.pop("rows"), theirs.pop("rows"), strict=True):
        assert {name: row[name] for name in plain if not name.endswith("_time")} == without_times([plain])[0]
        assert "sharpness" in row
    assert ours.pop("memory").keys() == {"sharpness"}
    theirs.pop("memory")
    assert_equal_states(ours, theirs)


def test_probes_come_at_multiples_and_at_the_last_step() -> None:
    some = probed([ParameterNorm()], every=4, steps=10)
    some.run()
    assert [row["step"] for row in some.state.rows if "param_norm_after" in row] == [4, 8, 10]
    assert all(("analysis_time" in row) == ("param_norm_after" in row) for row in some.state.rows)
    some = probed(
        [ParameterNorm()], every=100, steps=10, stop_rules=[lambda rows: "enough" if len(rows) == 3 else None]
    )
    some.run()
    assert [row["step"] for row in some.state.rows if "param_norm_after" in row] == [3]


def test_a_resumed_run_continues_bitwise_with_its_probes() -> None:
    """A warm start is part of the state."""
    probe: list[Probe] = [SharpnessProbe(tolerance=0.05, max_matvecs=20)]
    whole, first, second = (probed(probe, every=2, steps=5) for _ in range(3))
    whole.run()
    run_to(first, 3)
    second.state.load_state_dict(first.state.state_dict())
    second.run()
    assert rows_of(second) == rows_of(whole)
    forgetful = probed(probe, every=2, steps=5)
    forgetful.state.load_state_dict(first.state.state_dict() | {"memory": {}})
    forgetful.run()
    assert rows_of(forgetful) != rows_of(whole)


def test_a_state_without_memory_is_read() -> None:
    state = trainer().state.state_dict()
    del state["memory"]
    some = trainer()
    some.state.load_state_dict(state)
    assert some.state.memory == {}


def test_what_is_measured_is_the_loss_after_the_step() -> None:
    """Without the regularizer and the clip that the run has."""
    some = probed([ParameterNorm(), GradientProbe(PARTS)], steps=2)
    some.run()
    model, row = some.state.model, some.state.rows[-1]
    model.train()
    objective = some.take_step.objective_at(1)
    objective.regularizer = objective.block_objective.regularizer = None
    found = objective.evaluate()
    assert row["full_grad_norm_after"] == pytest.approx(float(global_norm(found.gradient)))
    assert row["grad_norm_after"] == pytest.approx(float(found.squared_norms) ** 0.5)
    assert row["param_norm_after"] == pytest.approx(float(global_norm(trainable(model)).detach()) ** 2)
    buffers = [some.state.optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    product = sum(float((b * g).sum()) for b, g in zip(buffers, found.gradient, strict=True))
    cosine = product / float(global_norm(buffers) * global_norm(found.gradient))
    assert row["momentum_alignment"] == pytest.approx(cosine)
    assert row["grad_SNR"] == pytest.approx(gradient_statistics(objective).snr)


def test_what_cannot_be_measured_has_no_entry() -> None:
    some = probed([GradientProbe(PARTS)], steps=1)
    some.take_step.objective.sub_batch = None
    some.take_step.max_blocks = 1
    some.run()
    row = some.state.rows[0]
    assert "full_grad_norm_after" in row
    assert not {"grad_SNR", "grad_noise_scale"} & row.keys()
    assert not any(math.isnan(value) for value in row.values())


def test_a_stochastic_step_has_a_batch_sharpness() -> None:
    some = probed([SharpnessProbe(tolerance=0.2, max_matvecs=5)], steps=1, stochastic=True)
    some.run()
    assert "batch_sharpness" in some.state.rows[0]
    full = probed([SharpnessProbe(tolerance=0.2, max_matvecs=5)], steps=1)
    full.run()
    assert "batch_sharpness" not in full.state.rows[0]


def test_adam_has_a_preconditioned_sharpness_beside_its_threshold() -> None:
    some = trainer(steps=3)
    optimizer = torch.optim.AdamW(some.state.model.parameters(), lr=0.01)
    some.state.optimizer = some.take_step.optimizer = optimizer
    some.probes = Probes(partial(observed, some), [(1, SharpnessProbe(tolerance=0.1, max_matvecs=30))])
    some.run()
    row = some.state.rows[-1]
    assert row["stability_threshold"] == pytest.approx((2 - row["lr"] * 0.01) * 1.9 / (0.1 * row["lr"]))
    assert row["preconditioned_sharpness"] != row["sharpness"]


def test_notes_are_rows_and_later_ones_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    Notes(path)
    assert not path.exists()  # nothing was noted
    notes = Notes(path)
    for step in (1, 2, 3):
        notes(step, "norm", ["a", "b"], [step + 0.5, 1.0])
    Notes(path, step=2)(3, "norm", ["a"], [9.0])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["step"], row["name"], row["value"]) for row in rows] == [
        *(("1", "a", "1.5"), ("1", "b", "1.0"), ("2", "a", "2.5"), ("2", "b", "1.0")),
        ("3", "a", "9.0"),
    ]


def test_noted_are_norms_of_sub_batches_layers_and_samples() -> None:
    noted: dict[str, tuple[list[str], list[float]]] = {}
    some = probed(ALL, steps=1)
    some.probes.note = lambda step, quantity, names, values: noted.update({quantity: (list(names), list(values))})
    some.run()
    assert noted["layer_param_norm"][0] == [name for name, _ in some.state.model.named_parameters()]
    assert len(noted["sub_batch_grad_norm"][1]) == 14  # blocks of 16, 16, 16 and 2; in parts of 8, twice as many
    assert len(noted["sample_grad_norm"][1]) == 50
    assert len(noted["flatness"][1]) == 2
    assert sum(noted["density_weight"][1]) == pytest.approx(1)


def test_columns_are_described(tmp_path: Path) -> None:
    some = probed(ALL, steps=1)
    some.run()
    write_columns(tmp_path / "columns.json", some.probes.columns)
    described = json.loads((tmp_path / "columns.json").read_text())
    plain = trainer(1)
    plain.run()
    assert some.state.rows[0].keys() - plain.state.rows[0].keys() - {"analysis_time"} <= described.keys()
    assert "regularizer excluded" in described["sharpness"]


def test_models_are_saved_as_a_trajectory(tmp_path: Path) -> None:
    some = probed([SavedModels(tmp_path / "models")], every=2, steps=5)
    some.run()
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        f"step_00000{number}.pth" for number in (2, 4, 5)
    ]
    stored = read_model(tmp_path / "models" / "step_000005.pth").weights
    assert_equal_states(stored, dict(some.state.model.state_dict()))


def test_the_figure_shows_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows: list[Row] = [
        {"step": n, "train_loss": 1 / n, "sharpness": 3.0 * n, "stability_threshold": 40.0, "sharpness_2": 2.0 * n}
        for n in range(1, 20)
    ]
    assert draw_edge_of_stability({"one": rows, "two": rows}, tmp_path / "a.png", "both")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not draw_edge_of_stability({"one": [{"step": 1, "train_loss": 1.0}]}, tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
