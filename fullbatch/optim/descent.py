"""Gradient descent with momentum, and an exchangeable search for the length of each step."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fullbatch.optim.closure import Closure, Point, gradients_of, parameters_of
from fullbatch.optim.eager import EagerOptimizer
from fullbatch.optim.line_search import Found, Line, StepRule
from fullbatch.tensors import add_, added, clones, scale_

MEMORY = "search"
"""The key in the optimizer's state of what the search remembers from step to step."""


class Descent(EagerOptimizer):
    """Gradient descent with momentum (Polyak, 1964; Nesterov, 1983; Sutskever et al., 2013).

    A step from t:

    1. The closure evaluates; g is the transformed gradient plus weight_decay t.
    2. m <- momentum m + (1 - dampening) g, and m = g in the first step; d = g + momentum m with Nesterov, else m.
       This is ``torch.optim.SGD``, bitwise, and so are the names in its state.
    3. The search says how far: t <- t - a eta d. A direction that does not descend, and a search that finds no
       lower point, end the momentum; the former is tried again with d = g.

    Args:
        params: parameters or groups of them.
        lr: eta.
        momentum: share of the last direction that is kept.
        dampening: share of the gradient that is left out of the momentum.
        weight_decay: of the penalty weight_decay/2 ||t||^2.
        nesterov: look ahead; needs momentum and no dampening.
        search: ``StepRule()`` takes the whole step.

    Raises:
        ValueError: for Nesterov's momentum without momentum or with dampening.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        search: StepRule | None = None,
    ) -> None:
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError("nesterov=True: needs momentum, and dampening=0")
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening}
        super().__init__(params, {**defaults, "weight_decay": weight_decay, "nesterov": nesterov})
        self.search = search or StepRule()
        self.statistics: dict[str, float] = {}
        """Of the last step: ``step_length`` a and ``search_failed`` 0 or 1, where there is a search."""

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take a step and return the full loss at its start."""
        with torch.enable_grad():
            start = closure.evaluate() if self.search.needs_gradient else Point(closure(), [])
        memory: dict[str, Any] = self.state.get(MEMORY, {})  # type: ignore[call-overload]
        if self.search.remember(memory, start.loss):
            self._forget()
        if memory:
            self.state[MEMORY] = memory  # type: ignore[index]  # state dicts keep keys that are no tensors
        if not self.search.needs_gradient:
            self._take_whole_step()
            return start.loss
        found = self._search(closure, start, memory)
        self.statistics = {"step_length": found.a, "search_failed": float(not found.satisfied)}
        if found.stuck:
            self._forget()
        return start.loss

    def _gradients(self) -> list[Tensor]:
        """Return the gradients that are followed; subclasses clip them."""
        return gradients_of(self)

    def _search(self, closure: Closure, start: Point, memory: dict[str, Any]) -> Found:
        gradients = clones(self._gradients())  # evaluations along the line overwrite them
        line = Line(self, closure, self._directions(gradients), start)
        if line.slope > 0 and self._forget():
            line = Line(self, closure, self._directions(gradients), start)
        return self.search.find(line, memory)

    def _take_whole_step(self) -> None:
        rest = iter(self._directions(self._gradients()))
        for group in self.param_groups:
            add_(group["params"], [next(rest) for _ in group["params"]], alpha=-group["lr"])

    def _directions(self, gradients: list[Tensor]) -> list[Tensor]:
        rest = iter(gradients)
        found: list[Tensor] = []
        for group in self.param_groups:
            found += self._direction(group, [next(rest) for _ in group["params"]])
        return found

    def _direction(self, group: dict[str, Any], gradients: list[Tensor]) -> list[Tensor]:
        parameters, momentum = group["params"], group["momentum"]
        if group["weight_decay"]:
            gradients = added(gradients, parameters, group["weight_decay"])
        if momentum == 0:
            return gradients
        known = all(self.state[p].get("momentum_buffer") is not None for p in parameters)
        if not known:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                self.state[parameter]["momentum_buffer"] = gradient.clone()
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        if known:
            scale_(buffers, momentum)
            add_(buffers, gradients, alpha=1 - group["dampening"])
        return added(gradients, buffers, momentum) if group["nesterov"] else buffers

    def _forget(self) -> bool:
        """End the momentum, and say whether there was any."""
        buffers = [self.state[p].pop("momentum_buffer", None) for p in parameters_of(self)]
        return any(buffer is not None for buffer in buffers)
