"""Optimizers that wrap another one and change the gradients it receives."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fullbatch.optim.closure import Closure, Point
from fullbatch.optim.eager import EagerOptimizer


class ClosureWrapper:
    """A closure that relays to another one; subclasses override what they change."""

    def __init__(self, closure: Closure) -> None:
        self.closure = closure

    @property
    def pure(self) -> bool:
        """Whether ``loss`` needs forward passes only."""
        return self.closure.pure

    def __call__(self) -> Tensor:
        """Set the gradients and return the full loss."""
        with torch.enable_grad():
            return self.closure()

    def evaluate(self) -> Point:
        """Set the gradients and return the full loss with its own gradient."""
        return self.closure.evaluate()

    def loss(self) -> Tensor:
        """Return the full loss."""
        return self.closure.loss()


class Wrapper(EagerOptimizer):
    """Gives ``base`` a wrapped closure; parameters, groups, state and state dict are those of ``base``."""

    def __init__(self, base: Optimizer) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.base = base
        self._share_state()

    @property
    def statistics(self) -> dict[str, float]:
        """The statistics of the last step of the base."""
        statistics: dict[str, float] = getattr(self.base, "statistics", {})
        return statistics

    @abstractmethod
    def wrap(self, closure: Closure) -> ClosureWrapper:
        """Return the closure for the base."""

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take a step of the base and return the full loss at its start."""
        loss: Tensor = self.base.step(self.wrap(closure))  # type: ignore[arg-type, assignment]
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state dict of the base."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state dict of the base."""
        self.base.load_state_dict(state_dict)
        self._share_state()

    def _share_state(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state
