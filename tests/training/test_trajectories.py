"""The trajectories measured from the paper's code, step by step, from the same command lines."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed
from filling import fill_, inputs
from fixed_blocks import FixedBlocks
from torch import Tensor

from fullbatch.build import trainer as build
from fullbatch.build.optimizer import build_optimizer
from fullbatch.build.problem import build_objective
from fullbatch.models.registry import build_model
from fullbatch.objective.losses import loss_function
from fullbatch.optim.schedules import schedule_named
from fullbatch.settings.parse import parse
from fullbatch.training.state import TrainState
from fullbatch.training.step import Step
from fullbatch.training.trainer import Trainer, TrainingPlan
from fullbatch.training.validation import validate

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "trajectories.json").read_text(encoding="utf-8"))
RUNS = ["gd", "fbclip", "gradreg", "gradreg_autograd", "smooth", "adam", "fista", "sam", "sgd"]
PERTURBED = ("gradreg", "sam")
"""Where the original moved batch-norm statistics at perturbed parameters, too: not comparable."""
WHOLE = ("gd", "gradreg", "sgd")
FIRST_STEPS = ("gradreg_autograd", "adam", "fista", "sam")
"""Of these only the first steps are taken outside of `make soak`; clipping is part of gradreg."""
COLUMNS = ["train_loss", "train_acc", "grad_norm"]
VALIDATION = ["valid_loss", "valid_acc"]
ROWS = {"sam": slice(None, None, 2)}
"""The original had a row for each evaluation; those at the starting points are ours."""


def train(overrides: list[str], steps: int | None = None) -> Trainer:
    """Take the first ``steps`` steps (None: all) of the run of a command line."""
    run = parse(composed(*overrides, "hyp.optim.lr=0.005", "impl.dtype=double", "data.batch_size=16"))
    model = build_model("resnet18", channels=3, classes=10, pixels=8).double()
    fill_(model)
    data = FixedBlocks.cut(inputs(64, 3, 8), torch.arange(64) * 7 % 10, [16] * 4)
    state = TrainState(model, build_optimizer(run.hyp, model))
    objective = build_objective(run, model, state.optimizer, data)
    step = Step(state, objective, data, transforms=build.build_transforms(run.hyp))
    plan = TrainingPlan(
        steps or run.hyp.steps,
        schedule_named(run.hyp.scheduler, run.hyp.steps, run.hyp.warmup),
        build.build_mode(run.hyp),
        validate_every=1,
    )
    trainer = Trainer(state, step, plan, validate=lambda model, _: validate(model, loss_function(), data))
    trainer.run()
    return trainer


def assert_rows(name: str, rows: list[dict[str, Any]]) -> None:
    """Compare each step's row with the reference's."""
    golden, part = GOLDEN[name], ROWS.get(name, slice(None))
    for column in COLUMNS + ([] if name in PERTURBED else VALIDATION):
        expected = golden[column][part][: len(rows)]
        assert [row[column] for row in rows] == pytest.approx(expected, rel=1e-9), column
    norms, expected = [row["param_norm"] for row in rows], golden["param_norm"][part][: len(rows)]
    if name == "sgd":  # measured after the epoch there, before it here
        norms, expected = norms[1:], expected[:-1]
    assert norms == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST_STEPS)
def test_the_first_steps_are_the_reference(name: str) -> None:
    rows = train(GOLDEN[name]["overrides"], steps=3).state.rows
    assert len(rows) == 3
    assert_rows(name, rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in WHOLE else pytest.mark.soak) for name in RUNS])
def test_the_whole_run_is_the_reference(name: str) -> None:
    golden = GOLDEN[name]
    state = train(golden["overrides"]).state
    assert len(state.rows) == len(golden["train_loss"][ROWS.get(name, slice(None))])
    assert_rows(name, state.rows)
    weights: dict[str, Tensor] = state.model.state_dict()
    for key, expected in golden["probe"].items():
        if name not in PERTURBED or "running" not in key:
            assert weights[key].flatten()[:3].tolist() == pytest.approx(expected, rel=1e-9), key
    assert math.isfinite(state.rows[-1]["full_loss"])
