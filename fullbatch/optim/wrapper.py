"""Optimizers around optimizers."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fullbatch.optim.closure import Closure, Point
from fullbatch.optim.eager import EagerOptimizer


class ClosureAround:
    """A closure that stands for another one; what a wrapper changes is changed in a subclass."""

    def __init__(self, closure: Closure) -> None:
        self.closure = closure

    @property
    def pure(self) -> bool:
        """Whether ``loss`` is forward passes alone."""
        return self.closure.pure

    def __call__(self) -> Tensor:
        """Set the gradients and return the full loss."""
        with torch.enable_grad():
            return self.closure()

    def evaluate(self) -> Point:
        """Set the gradients; return the full loss and its own gradient."""
        return self.closure.evaluate()

    def loss(self) -> Tensor:
        """Return the full loss."""
        return self.closure.loss()


class Wrapper(EagerOptimizer):
    """Changes what ``base`` is given; parameters, groups, state and state dict are those of ``base``."""

    def __init__(self, base: Optimizer) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.base = base
        self._share()

    @property
    def statistics(self) -> dict[str, float]:
        """What the base has to say about its last step."""
        found: dict[str, float] = getattr(self.base, "statistics", {})
        return found

    @abstractmethod
    def around(self, closure: Closure) -> ClosureAround:
        """Return what the base is given in place of ``closure``."""

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take a step of the base and return the full loss at its start."""
        loss: Tensor = self.base.step(self.around(closure))  # type: ignore[arg-type, assignment]
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the base's."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the base's."""
        self.base.load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state
