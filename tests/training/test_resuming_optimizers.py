"""Every optimizer and wrapper: six steps are three resumed for three, bitwise, with the average of the weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
from optimizer_runs import CASES, always_the_same, built
from states import assert_equal_states, run_to, without_times

from fullbatch.training.checkpoint import load_checkpoint, save_checkpoint
from fullbatch.training.trainer import Trainer


def assert_resumes(path: Path, build: Callable[..., Trainer], overrides: list[str]) -> Trainer:
    uninterrupted = build(overrides)
    uninterrupted.run()
    first = run_to(build(overrides), 3)
    save_checkpoint(path / "x.pth", first.state.state_dict(), config={}, seed=0)
    second = build(overrides, seed=99)
    second.state.load_state_dict(load_checkpoint(path / "x.pth")["state"])
    second.run()
    assert without_times(second.state.rows) == without_times(uninterrupted.state.rows)
    assert_equal_states(second.state.state_dict(), uninterrupted.state.state_dict())
    return uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_resuming_is_bitwise(tmp_path: Path, name: str) -> None:
    state = assert_resumes(tmp_path, built, CASES[name]).state
    assert state.optimizer.state_dict()["state"]
    assert state.rows[-1]["train_loss"] != state.rows[-2]["train_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gd, wolfe", "lbfgs", "lbfgs, armijo"])
def test_resuming_is_bitwise_where_the_accepted_point_is_cached(tmp_path: Path, name: str) -> None:
    state = assert_resumes(tmp_path, always_the_same, CASES[name]).state
    assert state.cached is not None
    assert min(row["evaluations"] for row in state.rows[3:]) == 1  # a search that ended at once, and nothing else
