"""A run that stops in the middle of a full-batch step continues inside it, bitwise, whatever the optimizer asks."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer_runs import CASES, always_the_same, built
from small_training import trainer
from states import assert_equal_states, without_times
from stop_requests import RequestAt

from fullbatch.runtime.stop_requests import StopRequest
from fullbatch.training.checkpoint import load_checkpoint, save_checkpoint
from fullbatch.training.trainer import Trainer

pytestmark = pytest.mark.slow

BLOCKS = 4  # of 16 samples, the last of 2


def interrupted(build: Callable[[], Trainer], requests: RequestAt, path: Path) -> Trainer:
    """Run until the request, save, and continue in a new trainer to the end."""
    first = build()
    first.step.block_pass.requests = requests
    first.save = lambda: save_checkpoint(path, first.state.state_dict(), config={}, seed=0)
    first.run()
    assert not first.done
    second = build()
    second.state.load_state_dict(load_checkpoint(path)["state"])
    assert second.state.inside is not None
    second.run()
    return second


def assert_same_run(actual: Trainer, expected: Trainer) -> None:
    assert without_times(actual.state.rows) == without_times(expected.state.rows)
    assert_equal_states(actual.state.state_dict(), expected.state.state_dict())


def blocks_of(uninterrupted: Trainer) -> int:
    """Run, and return how many blocks that took."""
    counter = RequestAt(10**9)
    uninterrupted.step.block_pass.requests = counter
    uninterrupted.run()
    return counter.blocks


@pytest.mark.parametrize("name", ["gd, wolfe", "gd, non-monotone", "adam", "lbfgs", "SAM, gd_clip", "ASAM, fista"])
def test_a_step_continues_in_any_of_its_evaluations(name: str, tmp_path: Path) -> None:
    def build() -> Trainer:
        some = built(CASES[name])
        some.plan = replace(some.plan, steps=2)
        return some

    uninterrupted = build()
    blocks = blocks_of(uninterrupted)
    assert (blocks > 2 * BLOCKS) == (name != "adam")
    for block in sorted({2, BLOCKS, blocks // 2 + 1, blocks - 2}):
        assert_same_run(interrupted(build, RequestAt(block), tmp_path / "x.pth"), uninterrupted)


def test_both_passes_of_a_regularizer_with_the_mean_gradient_continue(tmp_path: Path) -> None:
    def build() -> Trainer:
        some = trainer(2)
        some.step.objective.regularizer.acc_strength = 0.25
        return some

    uninterrupted = build()
    assert blocks_of(uninterrupted) == 3 * BLOCKS  # eta of the first step is 0
    for block in (1, BLOCKS + 2, 2 * BLOCKS, 2 * BLOCKS + 3):
        assert_same_run(interrupted(build, RequestAt(block), tmp_path / "x.pth"), uninterrupted)


def test_the_cached_evaluation_of_a_search_survives_a_checkpoint(tmp_path: Path) -> None:
    def build() -> Trainer:
        some = always_the_same(CASES["gd, wolfe"])
        some.plan = replace(some.plan, steps=3)
        return some

    uninterrupted = build()
    blocks = blocks_of(uninterrupted)
    assert uninterrupted.state.rows[2]["evaluations"] < uninterrupted.state.rows[0]["evaluations"] + 1
    assert_same_run(interrupted(build, RequestAt(blocks - 1), tmp_path / "x.pth"), uninterrupted)


def test_the_regularized_trainer_continues_from_every_block(tmp_path: Path) -> None:
    uninterrupted = trainer(2)
    uninterrupted.run()
    for block in range(1, 2 * BLOCKS + 1):
        assert_same_run(interrupted(lambda: trainer(2), RequestAt(block), tmp_path / "x.pth"), uninterrupted)


def test_a_save_without_a_stop_changes_nothing_and_can_be_continued(tmp_path: Path) -> None:
    uninterrupted = trainer(2)
    uninterrupted.run()
    saving = trainer(2)
    saved: list[dict[str, Any]] = []
    saving.step.block_pass.requests = RequestAt(3, StopRequest.SAVE)
    saving.save = lambda: saved.append(copy.deepcopy(saving.state.state_dict()))
    saving.run()
    assert_same_run(saving, uninterrupted)
    inside = [state for state in saved if state["inside"] is not None]
    assert [len(state["rows"]) for state in inside] == [0]
    (part,) = inside[0]["inside"]["parts"]
    assert [(s["start"], s["stop"], s["position"]) for s in part["segments"]] == [(0, BLOCKS, 3)]
    second = trainer(2)
    second.state.load_state_dict(inside[0])
    second.run()
    assert_same_run(second, uninterrupted)


def test_blocks_that_are_done_are_not_visited_again(tmp_path: Path) -> None:
    first, path = trainer(1), tmp_path / "x.pth"
    first.step.block_pass.requests = RequestAt(3)
    first.save = lambda: save_checkpoint(path, first.state.state_dict(), config={}, seed=0)
    first.run()
    second = trainer(1)
    second.state.load_state_dict(load_checkpoint(path)["state"])
    second.step.block_pass.requests = counter = RequestAt(10**9)
    second.run()
    assert counter.blocks == BLOCKS - 3


def test_the_step_starts_anew_where_its_learning_rate_has_changed(tmp_path: Path) -> None:
    """The sums hold eta/4 H v of the old one."""
    first, path = trainer(4), tmp_path / "x.pth"
    first.step.block_pass.requests = RequestAt(2 * BLOCKS + 1)
    first.save = lambda: save_checkpoint(path, first.state.state_dict(), config={}, seed=0)
    first.run()
    faster = {"schedule": lambda step: 0.01 if step < 2 else 0.5}
    second = trainer(4, **faster)
    second.state.load_state_dict(load_checkpoint(path)["state"])
    second.state.inside["parts"][0]["sums"][0].fill_(torch.nan)  # would end the run
    second.run()
    assert second.done


def test_a_stochastic_step_is_not_interrupted() -> None:
    some = trainer(2, stochastic=True)
    some.step.block_pass.requests = RequestAt(1)
    some.run()
    assert some.done
