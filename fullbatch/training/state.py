"""Everything that is needed to continue a run."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fullbatch.models.packed_rows import RowPacker, unpack_rows
from fullbatch.models.weights import load_weights
from fullbatch.optim.closure import parameters_of
from fullbatch.optim.ema import ExponentialMovingAverage
from fullbatch.tensors import preserved, trainable
from fullbatch.training.stored_state import check_cached, check_numbers, check_optimizer, check_types, stored_groups

Row = dict[str, float]
"""The values recorded for one step; a value that was not measured has no entry."""


@dataclass
class TrainState:
    """Model, optimizer, average of the weights, and the rows of the steps so far.

    Randomness needs no state: every draw is a function of (seed, step, ...). The state of the global generator is kept
    for modules of the user that draw from it outside a step.
    Between ``begin_step`` and ``end_step``, ``state_dict`` is the state at the beginning of the step, with the progress
    ``inside`` it.
    """

    model: nn.Module
    optimizer: Optimizer
    ema: ExponentialMovingAverage | None = None
    rows: list[Row] = field(default_factory=list)
    stopped: str | None = None
    """The rule that ended the run early."""
    memory: dict[str, Any] = field(default_factory=dict)
    """State of the probes."""
    inside: dict[str, Any] | None = None
    """The progress inside the current step; see ``fullbatch.training.distributed_pass.StepProgress``."""
    cached: dict[str, Any] | None = None
    """An ``Evaluation`` at the current parameters, with their norm; the next step starts from it."""
    _beginning: dict[str, Any] | None = field(default=None, init=False)
    _pack: RowPacker = field(default_factory=RowPacker, init=False)

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return len(self.rows)

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """Yield the model that is validated: with averaged weights, where the run or its optimizer averages them.

        Such optimizers, the schedule-free ones, have methods ``eval`` and ``train``, which exchange the weights.
        """
        averaging = self._averaging_optimizer
        if self.ema is not None or averaging is None:
            yield self.model if self.ema is None else self.ema.model
            return
        with preserved(trainable(self.model)):
            averaging.eval()
            yield self.model
            averaging.train()

    def train(self) -> None:
        """Set the model, and an optimizer that averages the weights, to training mode."""
        self.model.train()
        if self._averaging_optimizer is not None:
            self._averaging_optimizer.train()

    @property
    def _averaging_optimizer(self) -> Any:
        """The optimizer, or the one inside a wrapper, if it averages the weights; else None."""
        base = getattr(self.optimizer, "base", self.optimizer)
        averages = all(callable(getattr(base, method, None)) for method in ("train", "eval"))
        return base if averages else None

    def begin_step(self) -> None:
        """Copy model and optimizer, which a step changes before it is finished."""
        self._beginning = copy.deepcopy(self._changing())

    def end_step(self) -> None:
        """Drop the copies and the progress inside the step."""
        self._beginning = self.inside = None

    def _changing(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "cached": self.cached}

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers and tensors, which ``torch.load(weights_only=True)`` reads."""
        return {
            **(self._beginning or self._changing()),
            "inside": self.inside,
            "ema": self._averaged_weights(),
            **self._pack(self.rows),
            "step": self.step,
            "stopped": self.stopped,
            "memory": self.memory,
            "rng": torch.get_rng_state(),
        }

    def _averaged_weights(self) -> dict[str, Tensor] | None:
        if self.ema is None and (self._averaging_optimizer is None or self._beginning is not None):
            return None
        with self.evaluated() as model:
            weights = model.state_dict()
            return weights if self.ema is not None else {name: value.clone() for name, value in weights.items()}

    def load_state_dict(self, state: Mapping[str, Any], *, fork: bool = False) -> None:
        """Continue from a ``state_dict``; with ``fork``, under other settings.

        Learning rates, weight decay and so on remain those of the optimizer. Except in a fork, the state dict must have
        the same.

        Raises:
            ValueError: Entries are missing, of wrong types, not finite, or belong to another model or optimizer.
        """
        state = unpack_rows(state)
        check_types(state)
        if state.get("step", len(state["rows"])) != len(state["rows"]):  # not in older checkpoints
            raise ValueError(f"the entry state.rows has {len(state['rows'])} rows for {state['step']} steps")
        of_parameters = dict(state["optimizer"]["state"])
        cached = state.get("cached", of_parameters.pop("known", None))  # older versions kept it there
        check_optimizer(self.optimizer, {**state["optimizer"], "state": of_parameters}, same_settings=not fork)
        check_cached(cached, trainable(self.model))
        check_numbers("state.memory", state.get("memory"))
        if fork:
            ema = None if self.ema is None else state["ema"] or state["model"]
            state, cached = {**state, "ema": ema, "inside": None, "stopped": None}, None
        if self.ema is not None and state["ema"] is None:
            raise ValueError("the entry state.ema is missing")
        if self.ema is None and state["ema"] is not None and self._averaging_optimizer is None:
            raise ValueError("the entry state.ema is of no use: there is no average here")
        load_weights(self.model, state["model"])
        if self.ema is not None:
            load_weights(self.ema.model, state["ema"])
        groups = stored_groups(self.optimizer, state["optimizer"]["param_groups"])
        self.optimizer.load_state_dict({"state": of_parameters, "param_groups": groups})
        for parameter, entries in zip(parameters_of(self.optimizer), map(of_parameters.get, count()), strict=False):
            for key, value in (entries or {}).items():  # PyTorch has converted them to the dtype of the parameter
                own = self.optimizer.state[parameter][key]
                if isinstance(own, Tensor) and own.dtype is not value.dtype:
                    self.optimizer.state[parameter][key] = value.to(own.device)
        self.cached = cached
        self.rows, self.stopped = list(state["rows"]), state["stopped"]
        self.memory = dict(state.get("memory", {}))  # not in older checkpoints
        self.inside = state.get("inside")  # not in older checkpoints
        try:
            torch.set_rng_state(state["rng"].cpu())
        except (RuntimeError, TypeError) as error:
            raise ValueError("the entry state.rng is no state of the random number generator") from error
