"""The training loop: step, average, validate, record, save, until all steps are taken."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from fullbatch.optim.schedules import Schedule
from fullbatch.runtime.stop_requests import StopRequest
from fullbatch.training.distributed_pass import PausedError
from fullbatch.training.state import Row, TrainState
from fullbatch.training.step import Step
from fullbatch.training.stopping import StopRule
from fullbatch.training.validation import Validate


class Observer(Protocol):
    """Receives the row of every step: a progress bar, a table, a logger."""

    def __call__(self, row: Row) -> None:
        """Handle the row of a step."""


class Probes(Protocol):
    """Measures a state and changes nothing."""

    def __call__(self, state: TrainState, *, last: bool) -> Row:
        """Return the measurements that are due after the last step of ``state``."""
        ...


@dataclass(frozen=True)
class TrainingPlan:
    """The steps of a run, and what happens when.

    Args:
        steps: the number of steps.
        schedule: step -> factor of the learning rates.
        stochastic: step -> whether that step is stochastic.
        stop_rules: reasons to end early, for good.
        validate_every: validation happens after steps 1, 1+n, 1+2n, ... and the last.
        save_every: checkpoints likewise.
    """

    steps: int
    schedule: Schedule
    stochastic: Callable[[int], bool]
    stop_rules: Sequence[StopRule] = ()
    validate_every: int = 100
    save_every: int = 1

    def is_done(self, state: TrainState) -> bool:
        """Return whether all steps are taken, or a rule has ended the run."""
        return state.step >= self.steps or state.stopped is not None


class Trainer:
    """Trains a ``TrainState`` according to a ``TrainingPlan``; see ``run``.

    Args:
        state: the state, trained in place.
        step: takes one step.
        plan: the steps to take.
        validate: (model, step) -> loss and accuracy.
        probes: measure the state after a step and return more values for its row.
        observers: called with every row.
        save: writes a checkpoint of the state.
        request: returns the most urgent request to save or to stop, after each step. Inside a full-batch step, its
            block pass asks by itself.
    """

    def __init__(
        self,
        state: TrainState,
        step: Step,
        plan: TrainingPlan,
        *,
        validate: Validate,
        probes: Probes = lambda state, last: {},
        observers: Sequence[Observer] = (),
        save: Callable[[], None] = lambda: None,
        request: Callable[[], StopRequest] = lambda: StopRequest.NONE,
    ) -> None:
        self.state, self.step, self.plan = state, step, plan
        self.validate, self.probes, self.observers = validate, probes, observers
        self.save, self.request = save, request

    @property
    def done(self) -> bool:
        """Whether no step is left to take."""
        return self.plan.is_done(self.state)

    def run(self) -> None:
        """Take the remaining steps, or as many as there are until a stop is requested, perhaps inside a step.

        Raises:
            DivergedError: when a step is not finite; nothing is saved after the last good step.
        """
        state, plan = self.state, self.plan
        while not self.done:
            start = time.perf_counter() - (state.inside["seconds"] if state.inside else 0.0)
            state.train()
            lr = set_learning_rates(state.optimizer, plan.schedule(state.step))
            stochastic = plan.stochastic(state.step)
            try:
                with self._inside_step(lr or 0.0, stochastic):
                    row = self.step(state.step, stochastic=stochastic)
            except PausedError:
                return
            if state.ema is not None:
                state.ema.update(state.model)
            rate = {} if lr is None else {"lr": lr}
            row = {"step": state.step + 1, **row, **rate, "train_time": time.perf_counter() - start}
            state.rows.append(row)
            state.stopped = next((reason for rule in plan.stop_rules if (reason := rule(state.rows))), None)
            request = StopRequest.NONE if self.done else self.request()
            if self._is_due(plan.validate_every):
                row.update(measure_validation(state, self.validate))
            row.update(self.probes(state, last=self.done))
            for observe in self.observers:
                observe(row)
            if self._is_due(plan.save_every) or request is not StopRequest.NONE:
                self.save()
            if request is StopRequest.STOP:
                return

    @contextmanager
    def _inside_step(self, lr: float, stochastic: bool) -> Iterator[None]:
        """Let a full-batch step be saved and resumed between its blocks."""
        if stochastic:
            yield
            return
        state = self.state

        def save(progress: dict[str, Any]) -> None:
            state.inside = progress
            self.save()

        state.begin_step()
        with self.step.block_pass.step_progress(lr, state.inside, save):
            yield
        state.end_step()

    def _is_due(self, every: int) -> bool:
        return (self.state.step - 1) % every == 0 or self.done


def validate_last(state: TrainState, validate: Validate) -> None:
    """Validate the model as it is, unless it was validated after its last step (one of another program was not)."""
    if "valid_acc" not in state.rows[-1]:
        state.rows[-1].update(measure_validation(state, validate))


def measure_validation(state: TrainState, validate: Validate) -> Row:
    """Return validation loss, accuracy and seconds of the evaluated model."""
    start = time.perf_counter()
    with state.evaluated() as model:
        evaluation = validate(model, state.step - 1)
    loss, accuracy = torch.stack([evaluation.loss, evaluation.accuracy]).tolist()
    return {"valid_loss": loss, "valid_acc": accuracy, "valid_time": time.perf_counter() - start}


def set_learning_rates(optimizer: Optimizer, factor: float) -> float | None:
    """Set each group's learning rate to ``factor`` times its initial one; return the first group's, if it has one."""
    for group in optimizer.param_groups:
        if "lr" in group:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
    first = optimizer.param_groups[0].get("lr")
    return None if first is None else float(first)
