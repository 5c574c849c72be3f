"""Everything that continues a run."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fullbatch.models.weights import load_weights
from fullbatch.optim.ema import ExponentialMovingAverage

Row = dict[str, float]
"""What one step recorded; a value that was not measured has no entry."""


@dataclass
class TrainState:
    """Model, optimizer, average of the weights, and the rows of the steps so far.

    ``stopped`` says which rule ended the run early, ``memory`` is what probes remember from one time to the next.
    Randomness needs no state: every draw is a function of (seed, step, ...); the global generator is kept for modules
    of the user that draw from it outside a step.
    Between ``begin_step`` and ``end_step`` the state is that at the beginning, with what is known ``inside`` the step.
    """

    model: nn.Module
    optimizer: Optimizer
    ema: ExponentialMovingAverage | None = None
    rows: list[Row] = field(default_factory=list)
    stopped: str | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    inside: dict[str, Any] | None = None
    """What ``fullbatch.training.distributed_pass.StepProgress`` knew of the step that was going on."""
    _beginning: dict[str, Any] | None = field(default=None, init=False)

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return len(self.rows)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is validated: the average of the weights where there is one."""
        return self.model if self.ema is None else self.ema.model

    def begin_step(self) -> None:
        """Remember model and optimizer, which a step moves before it is through."""
        self._beginning = copy.deepcopy(self._moving())

    def end_step(self) -> None:
        """The step is through: what was remembered for its sake is let go."""
        self._beginning = self.inside = None

    def _moving(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers and tensors, which ``torch.load(weights_only=True)`` reads."""
        return {
            **(self._beginning or self._moving()),
            "inside": self.inside,
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "rows": self.rows,
            "stopped": self.stopped,
            "memory": self.memory,
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned; ``ValueError`` lists what does not fit the model."""
        load_weights(self.model, state["model"])
        if self.ema is not None:
            load_weights(self.ema.model, state["ema"] or state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rows, self.stopped = list(state["rows"]), state["stopped"]
        self.memory = dict(state.get("memory", {}))  # older checkpoints have none
        self.inside = state.get("inside")  # earlier versions had none
        torch.set_rng_state(state["rng"].cpu())
