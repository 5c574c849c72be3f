"""The cost of a run: sums that can be done by hand, bytes that can be counted."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_training import trainer

from fullbatch.objective.flops import Flops
from fullbatch.training import cost
from fullbatch.training.cost import Cost, num_bytes, num_due, speed

COST = Cost(
    samples=1000,
    steps=10,
    evaluations=2.0,
    loss_evaluations=3.0,
    validations=4,
    validation_samples=50,
    flops=Flops(gradient=30.0, loss=10.0),
    seconds_per_sample=0.002,
    seconds_per_loss=0.01,
)


def test_the_sums() -> None:
    assert COST.flops_per_step == 1000 * (2 * 30 + 3 * 10)
    assert (COST.seconds_per_step, COST.seconds_per_validation) == (2.0, 0.5)
    assert COST.seconds == 10 * 2.0 + 4 * 0.5
    assert COST.rate == 90_000 / 2.0
    assert replace(COST, samples=3000).seconds_per_step == pytest.approx(6.0)


@given(steps=st.integers(1, 60), every=st.integers(1, 70))
def test_validations_are_counted_as_they_happen(steps: int, every: int) -> None:
    assert num_due(steps, every) == len({1, *range(1, steps + 1, every), steps})


def test_bytes_of_nested_tensors() -> None:
    tree = {"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.float64), {"c": (torch.zeros(1), 7, None)}]}
    assert num_bytes(tree) == 12 + 16 + 4


def test_the_speed_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "matmul_peak", lambda device, dtype: 1e9)
    run = trainer()
    run.state.rows = [
        {"step": 1},  # taken by another program
        {"step": 2, "train_time": 3.0, "evaluations": 2.0, "loss_evaluations": 3.0},
        {"step": 3, "train_time": 5.0, "evaluations": 2.0, "loss_evaluations": 0.0},
    ]
    assert speed(run.step, torch.float64) == {"samples_per_second": 50 * (4 + 1) / 8}
    measured = speed(run.step, torch.float64, min_seconds=8.0)
    flops = cost.flops_of(run.step.objective, run.step.data.blocks(0))
    assert measured["peak_share"] == pytest.approx(50 * (4 * flops.gradient + 3 * flops.loss) / 8 / 1e9)
