"""The loop: resuming is bitwise, validation and checkpoints come when they are due, rules end a run."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import trainer
from states import assert_equal_states, run_to, without_times

from fullbatch.training.checkpoint import load_checkpoint, save_checkpoint
from fullbatch.training.state import TrainState
from fullbatch.training.step import DivergedError


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_ten_steps_are_four_resumed_for_six_bitwise(tmp_path: Path, stochastic: bool, shuffle: bool) -> None:
    uninterrupted = trainer(stochastic=stochastic, shuffle=shuffle)
    uninterrupted.run()
    first = run_to(trainer(stochastic=stochastic, shuffle=shuffle), 4)
    assert first.state.step == 4
    save_checkpoint(tmp_path / "x.pth", first.state.state_dict(), config={}, seed=0)
    torch.randn(5)  # another process has drawn other numbers
    second = trainer(stochastic=stochastic, shuffle=shuffle, seed=99)
    second.state.load_state_dict(load_checkpoint(tmp_path / "x.pth")["state"])
    second.run()
    # a run that is interrupted at step 4 does not validate there: its next validation is due at 7, as in the other
    assert without_times(second.state.rows) == without_times(uninterrupted.state.rows)
    assert_equal_states(second.state.state_dict(), uninterrupted.state.state_dict())


def test_training_moves_everything_that_is_continued() -> None:
    """Else the test above would compare constants."""
    some_trainer = trainer(steps=3)
    before = copy.deepcopy(some_trainer.state.state_dict())
    some_trainer.run()
    after = some_trainer.state.state_dict()
    for name in ("model", "ema"):
        for key, value in before[name].items():
            assert not torch.equal(value, after[name][key]), key
    assert after["optimizer"]["state"]
    assert some_trainer.state.rows[2]["train_loss"] != some_trainer.state.rows[1]["train_loss"]


@pytest.mark.parametrize(("steps", "every", "due"), [(10, 3, [1, 4, 7, 10]), (9, 4, [1, 5, 9]), (8, 4, [1, 5, 8])])
def test_validation_and_checkpoints_after_1_and_every_nth_and_the_last(steps: int, every: int, due: list[int]) -> None:
    saved: list[int] = []
    some_trainer = trainer(steps, validate_every=every, save_every=every)
    some_trainer.save = lambda: saved.append(some_trainer.state.step)
    some_trainer.run()
    assert [row["step"] for row in some_trainer.state.rows if "valid_loss" in row] == due
    assert saved == due


def test_an_interrupted_run_saves_and_pauses() -> None:
    saved: list[int] = []
    some_trainer = trainer(save_every=100)
    some_trainer.save = lambda: saved.append(some_trainer.state.step)
    run_to(some_trainer, 4)
    assert saved == [1, 4]
    assert not some_trainer.done


def test_a_rule_ends_the_run_with_validation_and_checkpoint() -> None:
    some_trainer = trainer(stop_rules=[lambda rows: "enough" if len(rows) == 5 else None], validate_every=100)
    some_trainer.run()
    assert some_trainer.state.step == 5
    assert some_trainer.state.stopped == "enough"
    assert "valid_loss" in some_trainer.state.rows[-1]
    assert some_trainer.done
    some_trainer.run()
    assert some_trainer.state.step == 5


def test_learning_rates_follow_the_schedule() -> None:
    some_trainer = trainer(10)
    some_trainer.run()
    expected = [0.05 * some_trainer.plan.schedule(step) for step in range(10)]
    assert [row["lr"] for row in some_trainer.state.rows] == pytest.approx(expected)


def test_the_average_of_the_weights_is_what_is_validated() -> None:
    validated = []
    some_trainer = trainer(1)
    validate = some_trainer.validate
    some_trainer.validate = lambda model, step: (validated.append(model), validate(model, step))[1]
    some_trainer.run()
    assert some_trainer.state.ema is not None
    assert validated == [some_trainer.state.ema.model]
    with TrainState(some_trainer.state.model, some_trainer.state.optimizer).evaluated() as model:
        assert model is some_trainer.state.model


def test_the_mode_may_switch_on_the_way() -> None:
    switched = trainer(4)
    switched.plan = replace(switched.plan, stochastic=lambda step: step >= 2)
    switched.run()
    full_batch, rows = trainer(2), switched.state.rows
    full_batch.run()
    assert without_times([{k: v for k, v in row.items() if "valid" not in k} for row in rows[:2]]) == without_times(
        [{k: v for k, v in row.items() if "valid" not in k} for row in full_batch.state.rows]
    )
    # an epoch of four updates moves batch norm once per sub-batch, too, but its momentum buffer four times
    assert rows[2]["update_norm"] > 0


def test_a_diverged_run_keeps_its_last_good_checkpoint() -> None:
    saved: list[int] = []
    some_trainer = trainer(10, schedule=lambda step: 0.1 if step < 3 else float("inf"))
    some_trainer.save = lambda: saved.append(some_trainer.state.step)
    with pytest.raises(DivergedError, match="step 4 is not finite"):
        some_trainer.run()
    assert saved == [1, 2, 3]
    assert some_trainer.state.step == 3


def test_weights_of_another_model_are_refused() -> None:
    state = trainer().state.state_dict()
    state["model"].pop("0.weight")
    state["model"]["0.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"2 entries differ \(0.weight: \(4, 1, 3, 3\) here, absent there; 0.bias"):
        trainer().state.load_state_dict(state)
