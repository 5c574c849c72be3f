"""Probes only observe: a run with all of them equals the run without bitwise, and resumes bitwise."""

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
from fullbatch.analysis.probes import Observation, Probe, ProbeSchedule
from fullbatch.analysis.sharpness_probe import SharpnessProbe
from fullbatch.build.probes import observe
from fullbatch.models.model_file import read_model
from fullbatch.tensors import global_norm, trainable
from fullbatch.training.state import Row
from fullbatch.training.step import Sampling
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
    training = trainer(**options)  # type: ignore[arg-type]
    training.probes = ProbeSchedule(partial(observe, training), [(every, probe) for probe in probes])
    return training


def rows_of(training: Trainer) -> list[Row]:
    return without_times(training.state.rows)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("probe", ALL, ids=lambda probe: type(probe).__name__)
def test_a_probe_leaves_no_trace(probe: Probe, stochastic: bool) -> None:
    training = run_to(trainer(stochastic=stochastic, shuffle=stochastic), 2)
    model = training.state.model
    before, gradients = trace_of(model), [p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    row = probe(observe(training, training.state, lambda *_: None))
    assert_no_trace(model, before)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(old, p.grad) for old, p in zip(gradients, model.parameters(), strict=True))
    assert row
    assert row.keys() <= probe.columns.keys()


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_run_with_all_probes_equals_the_run_without(stochastic: bool) -> None:
    plain, training = trainer(2, stochastic=stochastic), probed(ALL, steps=2, stochastic=stochastic)
    plain.run()
    training.run()
    state, expected = training.state.state_dict(), plain.state.state_dict()
    for row, plain_row in zip(state.pop("rows"), expected.pop("rows"), strict=True):
        assert {name: row[name] for name in plain_row if not name.endswith("_time")} == without_times([plain_row])[0]
        assert "sharpness" in row
    assert state.pop("memory").keys() == {"sharpness"}
    expected.pop("memory")
    assert_equal_states(state, expected)


def test_probes_are_due_at_multiples_and_at_the_last_step() -> None:
    training = probed([ParameterNorm()], every=2, steps=5)
    training.run()
    assert [row["step"] for row in training.state.rows if "param_norm_after" in row] == [2, 4, 5]
    assert all(("analysis_time" in row) == ("param_norm_after" in row) for row in training.state.rows)
    training = probed(
        [ParameterNorm()], every=100, steps=10, stop_rules=[lambda rows: "enough" if len(rows) == 3 else None]
    )
    training.run()
    assert [row["step"] for row in training.state.rows if "param_norm_after" in row] == [3]


def test_a_resumed_run_continues_bitwise_with_its_probes() -> None:
    """The start vectors of the next sharpness are part of the state."""
    probe: list[Probe] = [SharpnessProbe(tolerance=0.05, max_matvecs=20)]
    whole, first, second, cold = (probed(probe, every=2, steps=4) for _ in range(4))
    whole.run()
    run_to(first, 3)
    second.state.load_state_dict(first.state.state_dict())
    second.run()
    assert rows_of(second) == rows_of(whole)
    cold.state.load_state_dict(first.state.state_dict() | {"memory": {}})
    cold.run()
    assert rows_of(cold) != rows_of(whole)


def test_a_state_without_memory_is_loaded() -> None:
    state = trainer().state.state_dict()
    del state["memory"]
    training = trainer()
    training.state.load_state_dict(state)
    assert training.state.memory == {}


def test_probes_measure_the_loss_after_the_step_without_regularizer_and_clip() -> None:
    training = probed([ParameterNorm(), GradientProbe(PARTS)], steps=2)
    training.run()
    model, row = training.state.model, training.state.rows[-1]
    model.train()
    objective = training.step.objective_at(1).plain()
    evaluation = objective.evaluate()
    assert row["full_grad_norm_after"] == pytest.approx(float(global_norm(evaluation.gradient)))
    assert row["grad_norm_after"] == pytest.approx(float(evaluation.squared_norms) ** 0.5)
    assert row["param_norm_after"] == pytest.approx(float(global_norm(trainable(model)).detach()) ** 2)
    buffers = [training.state.optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    product = sum(float((b * g).sum()) for b, g in zip(buffers, evaluation.gradient, strict=True))
    cosine = product / float(global_norm(buffers) * global_norm(evaluation.gradient))
    assert row["momentum_alignment"] == pytest.approx(cosine)
    assert row["grad_SNR"] == pytest.approx(gradient_statistics(objective).snr)


def test_what_cannot_be_measured_has_no_entry() -> None:
    training = probed([GradientProbe(PARTS)], steps=1)
    training.step.objective.sub_batch = None
    training.step.sampling = Sampling(max_blocks=1)
    training.run()
    row = training.state.rows[0]
    assert "full_grad_norm_after" in row
    assert not {"grad_SNR", "grad_noise_scale"} & row.keys()
    assert not any(math.isnan(value) for value in row.values())


def test_a_probe_that_fails_is_a_warning_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(ParameterNorm):
        def __call__(self, observation: Observation) -> Row:
            if observation.step > 1:
                raise ValueError("a matrix-vector product is not finite")
            return super().__call__(observation)

    training = run_to(probed([Failing(), WorstCase(rho=0.05, m=4)]), 3)
    assert ["param_norm_after" in row for row in training.state.rows] == [True, False, False]
    assert all("worst_case" in row for row in training.state.rows)
    assert "step 2: Failing: not measured: a matrix-vector product is not finite" in caplog.text


def test_a_stochastic_step_has_a_batch_sharpness() -> None:
    training = probed([SharpnessProbe(tolerance=0.2, max_matvecs=5)], steps=1, stochastic=True)
    training.run()
    assert "batch_sharpness" in training.state.rows[0]
    full = probed([SharpnessProbe(tolerance=0.2, max_matvecs=5)], steps=1)
    full.run()
    assert "batch_sharpness" not in full.state.rows[0]


def test_adam_has_a_preconditioned_sharpness_beside_its_threshold() -> None:
    training = trainer(steps=3)
    optimizer = torch.optim.AdamW(training.state.model.parameters(), lr=0.01)
    training.state.optimizer = optimizer
    training.probes = ProbeSchedule(partial(observe, training), [(1, SharpnessProbe(tolerance=0.1, max_matvecs=30))])
    training.run()
    row = training.state.rows[-1]
    assert row["stability_threshold"] == pytest.approx((2 - row["lr"] * 0.01) * 1.9 / (0.1 * row["lr"]))
    assert row["preconditioned_sharpness"] != row["sharpness"]


def test_notes_are_rows_and_those_after_the_resumed_step_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    Notes(path)
    assert not path.exists()  # before the first note
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


def test_norms_of_sub_batches_layers_and_samples_are_noted() -> None:
    noted: dict[str, tuple[list[str], list[float]]] = {}
    training = probed(ALL, steps=1)
    training.probes.note = lambda step, quantity, names, values: noted.update({quantity: (list(names), list(values))})
    training.run()
    assert noted["layer_param_norm"][0] == [name for name, _ in training.state.model.named_parameters()]
    assert (
        len(noted["sub_batch_grad_norm"][1]) == 14
    )  # blocks of 16, 16, 16 and 2 in sub-batches of 8, twice as many with two chunks
    assert len(noted["sample_grad_norm"][1]) == 50
    assert len(noted["flatness"][1]) == 2
    assert sum(noted["density_weight"][1]) == pytest.approx(1)


def test_columns_are_described(tmp_path: Path) -> None:
    training = probed(ALL, steps=1)
    training.run()
    write_columns(tmp_path / "columns.json", training.probes.columns)
    described = json.loads((tmp_path / "columns.json").read_text())
    plain = trainer(1)
    plain.run()
    assert training.state.rows[0].keys() - plain.state.rows[0].keys() - {"analysis_time"} <= described.keys()
    assert "regularizer excluded" in described["sharpness"]


def test_models_are_saved_as_a_trajectory(tmp_path: Path) -> None:
    training = probed([SavedModels(tmp_path / "models")], every=2, steps=5)
    training.run()
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        f"step_00000{number}.pth" for number in (2, 4, 5)
    ]
    stored = read_model(tmp_path / "models" / "step_000005.pth").weights
    assert_equal_states(stored, dict(training.state.model.state_dict()))


def test_the_figure_needs_a_measured_sharpness(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows: list[Row] = [
        {"step": n, "train_loss": 1 / n, "sharpness": 3.0 * n, "stability_threshold": 40.0, "sharpness_2": 2.0 * n}
        for n in range(1, 20)
    ]
    assert draw_edge_of_stability({"one": rows, "two": rows}, tmp_path / "a.png", "both")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert draw_edge_of_stability({"one": rows}, tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert not draw_edge_of_stability({"one": [{"step": 1, "train_loss": 1.0}]}, tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
