"""The loop: step, average, validate, record, save, until nothing is left to do."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    """Is told of every step; a progress bar, a table."""

    def __call__(self, row: Row) -> None:
        """Take notice of the row of a step."""


class Probes(Protocol):
    """Measures and changes nothing."""

    def __call__(self, state: TrainState, *, last: bool) -> Row:
        """Return what is due after the last step of ``state``."""
        ...


@dataclass
class Trainer:
    """Trains a ``TrainState`` to ``steps`` steps; see ``run``.

    Args:
        state: what is trained, and continued.
        take_step: one step.
        steps: how many steps in all.
        schedule: step -> factor of the learning rates.
        validate: (model, step) -> loss and accuracy.
        stochastic: step -> whether that step is stochastic.
        save: writes a checkpoint of the state.
        stop_rules: reasons to end early, for good.
        wish: what somebody wants of the run after a step; inside a full-batch step its passes ask for themselves.
        observers: called with every row.
        probes: look at the state after a step, told whether it is the last one, and return more numbers for its row.
        validate_every: validation happens after steps 1, 1+n, 1+2n, ... and the last.
        save_every: checkpoints likewise.
    """

    state: TrainState
    take_step: Step
    steps: int
    schedule: Schedule
    validate: Validate
    stochastic: Callable[[int], bool]
    save: Callable[[], None] = lambda: None
    stop_rules: Sequence[StopRule] = ()
    wish: Callable[[], StopRequest] = lambda: StopRequest.NONE
    probes: Probes = field(default=lambda state, last: {})
    observers: Sequence[Observer] = field(default_factory=list)
    validate_every: int = 100
    save_every: int = 1

    def run(self) -> None:
        """Take the steps that are left, or as many as there are until somebody wants a stop, perhaps inside a step.

        Raises:
            DivergedError: when a step is not finite; nothing is saved after the last good step.
        """
        state = self.state
        while not self.done:
            try:
                row = self._step()
            except PausedError:
                return
            state.rows.append(row)
            state.stopped = next((reason for rule in self.stop_rules if (reason := rule(state.rows))), None)
            wish = StopRequest.NONE if self.done else self.wish()
            if self._due(self.validate_every):
                row.update(self._validation())
            row.update(self.probes(state, last=self.done))
            for observe in self.observers:
                observe(row)
            if self._due(self.save_every) or wish is not StopRequest.NONE:
                self.save()
            if wish is StopRequest.STOP:
                return

    def validate_last(self) -> None:
        """Validate the model as it is, unless its last step has been (one taken by another program has not)."""
        if "valid_acc" not in self.state.rows[-1]:
            self.state.rows[-1].update(self._validation())

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.state.step >= self.steps or self.state.stopped is not None

    def _step(self) -> Row:
        state, start = self.state, time.perf_counter()
        state.model.train()
        lr = set_learning_rates(state.optimizer, self.schedule(state.step))
        if self.stochastic(state.step):
            row = self.take_step(state.step, stochastic=True)
        else:
            before = state.inside["seconds"] if state.inside else 0.0
            row, start = self._full_batch_step(lr), start - before
        if state.ema is not None:
            state.ema.update(state.model)
        return {"step": state.step + 1, **row, "lr": lr, "train_time": time.perf_counter() - start}

    def _full_batch_step(self, lr: float) -> Row:
        state = self.state

        def save(inside: dict[str, Any]) -> None:
            state.inside = inside
            self.save()

        state.begin_step()
        with self.take_step.passes.inside_step(lr, state.inside, save):
            row = self.take_step(state.step, stochastic=False)
        state.end_step()
        return row

    def _validation(self) -> Row:
        start = time.perf_counter()
        found = self.validate(self.state.evaluated_model, self.state.step - 1)
        loss, accuracy = torch.stack([found.loss, found.accuracy]).tolist()
        return {"valid_loss": loss, "valid_acc": accuracy, "valid_time": time.perf_counter() - start}

    def _due(self, every: int) -> bool:
        return (self.state.step - 1) % every == 0 or self.done


def set_learning_rates(optimizer: Optimizer, factor: float) -> float:
    """Set each group's learning rate to ``factor`` times its initial one; return the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
    return float(optimizer.param_groups[0]["lr"])
