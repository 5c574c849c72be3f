"""Gradient descent with momentum and an exchangeable rule for the length of each step."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fullbatch.optim.closure import Closure, Point, by_group, gradients_of, parameters_of
from fullbatch.optim.eager import EagerOptimizer
from fullbatch.optim.line_search import Line, StepRule
from fullbatch.tensors import add_, added, clones, scale_

STEP_RULE = "search"
"""Key of the step rule's memory in the optimizer's state; state dicts keep keys that are no tensors."""


class Descent(EagerOptimizer):
    """Gradient descent with momentum (Polyak, 1964; Nesterov, 1983; Sutskever et al., 2013).

    A step from t:

    1. The closure is evaluated; g is the transformed gradient plus weight_decay t.
    2. m <- momentum m + (1 - dampening) g, and m = g in the first step; d = g + momentum m with Nesterov, else m.
       This equals ``torch.optim.SGD`` bitwise, and the state has the same names.
    3. The step rule chooses a: t <- t - a eta d. A line search resets the momentum where d is not a descent direction
       (and tries again with d = g) and where it finds no lower point.

    Args:
        params: parameters or groups of them.
        lr: eta.
        momentum: share of the last direction that is kept.
        dampening: share of the gradient that is left out of the momentum.
        weight_decay: of the penalty weight_decay/2 ||t||^2.
        nesterov: look ahead; needs momentum and no dampening.
        step_rule: by default ``StepRule()``, a = 1.

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
        step_rule: StepRule | None = None,
    ) -> None:
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError("nesterov=True: requires a momentum and dampening=0")
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening}
        super().__init__(params, {**defaults, "weight_decay": weight_decay, "nesterov": nesterov})
        self.step_rule = step_rule or StepRule()
        self.statistics: dict[str, float] = {}
        """Of the last step, with a line search: ``step_length`` a, and ``search_failed`` 0 or 1."""

    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take a step and return the full loss at its start."""
        with torch.enable_grad():
            start = closure.evaluate() if self.step_rule.needs_gradient else Point(closure(), [])
        with torch.no_grad():
            self._update(closure, start)
        return start.loss

    def _update(self, closure: Closure, start: Point) -> None:
        memory: dict[str, Any] = self.state.get(STEP_RULE, {})  # type: ignore[call-overload]
        if self.step_rule.begin(memory, start.loss):
            self._reset_momentum()
        if memory:
            self.state[STEP_RULE] = memory  # type: ignore[index]
        if not self.step_rule.needs_gradient:
            for group, directions in by_group(self, self._directions(self._gradients())):
                add_(group["params"], directions, alpha=-group["lr"])
            return
        gradients = clones(self._gradients())  # evaluations along the line overwrite them
        line = Line(self, closure, self._directions(gradients), start)
        if line.slope > 0 and self._reset_momentum():
            line = Line(self, closure, self._directions(gradients), start)
        result = self.step_rule.advance(line, memory)
        self.statistics = {"step_length": result.a, "search_failed": float(not result.satisfied)}
        if result.stuck:
            self._reset_momentum()

    def _gradients(self) -> list[Tensor]:
        """Return the gradients that the directions are made of; subclasses clip them."""
        return gradients_of(self)

    def _directions(self, gradients: list[Tensor]) -> list[Tensor]:
        directions: list[Tensor] = []
        for group, own in by_group(self, gradients):
            directions += self._direction(group, own)
        return directions

    def _direction(self, group: dict[str, Any], gradients: list[Tensor]) -> list[Tensor]:
        parameters, momentum = group["params"], group["momentum"]
        if group["weight_decay"]:
            gradients = added(gradients, parameters, group["weight_decay"])
        if momentum == 0:
            return gradients
        has_buffers = all(self.state[p].get("momentum_buffer") is not None for p in parameters)
        if not has_buffers:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                self.state[parameter]["momentum_buffer"] = gradient.clone()
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        if has_buffers:
            scale_(buffers, momentum)
            add_(buffers, gradients, alpha=1 - group["dampening"])
        return added(gradients, buffers, momentum) if group["nesterov"] else buffers

    def _reset_momentum(self) -> bool:
        """Delete the momentum and return whether there was any."""
        buffers = [self.state[p].pop("momentum_buffer", None) for p in parameters_of(self)]
        return any(buffer is not None for buffer in buffers)
