"""Step rules: how far to go along a direction.

With t the parameters, eta the learning rate and d the direction, phi(a) = full_loss(t - a eta d), a > 0; a = 1 is the
fixed step. "Up to rounding" below means that a loss may exceed its bound by 4 eps |phi(0)|, eps the machine precision
of the parameters, because smaller differences cannot be resolved.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from fullbatch.optim.closure import Closure, Point, by_group, parameters_of
from fullbatch.tensors import add_, clones, copy_, dot
from fullbatch.typing import Tensors


class LinePoint(NamedTuple):
    """phi at a, with its slope where that was computed."""

    a: float
    loss: float
    slope: float | None


class StepResult(NamedTuple):
    """The step that a rule has taken; the parameters are at its end."""

    a: float
    satisfied: bool
    """Whether the conditions of the search hold; otherwise this is its fallback."""

    @property
    def stuck(self) -> bool:
        """Whether the search failed and the step ends where it started."""
        return not self.satisfied and self.a == 0


class Line:
    """phi: moves the parameters and evaluates the closure there. Every number it returns waits for the device.

    Args:
        optimizer: its parameters and learning rates.
        closure: evaluates the full loss.
        directions: d, in the order of ``parameters_of(optimizer)``.
        start: the evaluation at the current parameters.
    """

    def __init__(self, optimizer: Optimizer, closure: Closure, directions: Tensors, start: Point) -> None:
        self.optimizer, self.closure, self.directions = optimizer, closure, directions
        self._start = clones(parameters_of(optimizer))
        self.gradient: list[Tensor] | None = start.gradient
        """The gradient of the full loss at ``a``, None where only the loss was evaluated."""
        self.a = 0.0
        self.slope = self._slope(start.gradient)
        """phi'(0), negative for a descent direction."""
        self.origin = LinePoint(0.0, float(start.loss), self.slope)
        self.rounding = 4 * torch.finfo(self._start[0].dtype).eps * abs(self.origin.loss)
        self.trials: list[LinePoint] = []

    @property
    def displacement(self) -> list[Tensor]:
        """The current parameters minus those at the start."""
        current = parameters_of(self.optimizer)
        return [parameter.detach() - start for parameter, start in zip(current, self._start, strict=True)]

    def move(self, a: float) -> None:
        """Set the parameters to t - a eta d; for a = 0 bitwise to t."""
        copy_(parameters_of(self.optimizer), self._start)
        if a != 0:
            for group, directions in by_group(self.optimizer, self.directions):
                add_(group["params"], directions, alpha=-a * float(group["lr"]))
        self.a, self.gradient = a, None

    def value(self, a: float) -> LinePoint:
        """Move to ``a`` and evaluate phi, with forward passes only where the objective allows it."""
        if not self.closure.pure:
            return self.value_and_slope(a)  # at the same cost
        self.move(a)
        self.trials.append(LinePoint(a, float(self.closure.loss()), None))
        return self.trials[-1]

    def value_and_slope(self, a: float) -> LinePoint:
        """Move to ``a`` and evaluate phi and its slope."""
        if self.a != a:
            self.move(a)
        point = self.closure.evaluate()
        self.gradient = point.gradient
        self.trials.append(LinePoint(a, float(point.loss), self._slope(point.gradient)))
        return self.trials[-1]

    def _slope(self, gradient: Tensors) -> float:
        pairs = zip(by_group(self.optimizer, gradient), by_group(self.optimizer, self.directions), strict=True)
        slopes = [-float(group["lr"]) * float(dot(g, d)) for (group, g), (_, d) in pairs]
        return math.fsum(slopes) if all(map(math.isfinite, slopes)) else math.nan


class StepRule:
    """Decides how far to go along the direction. This one takes the fixed step a = 1; subclasses decide otherwise."""

    needs_gradient = False
    """Whether ``advance`` evaluates along the line and needs the untransformed gradient at its start."""

    def begin(self, memory: dict[str, Any], loss: Tensor) -> bool:
        """Record the loss at the start of a step in ``memory``, a part of the optimizer's state.

        Returns whether to reset the momentum.
        """
        return False

    def advance(self, line: Line, memory: dict[str, Any]) -> StepResult:
        """Move the parameters to the end of the step."""
        line.move(1.0)
        return StepResult(1.0, True)


class Restarting(StepRule):
    """The fixed step; resets the momentum when the loss has risen (O'Donoghue & Candès, 2015)."""

    def begin(self, memory: dict[str, Any], loss: Tensor) -> bool:
        """Record the loss and return whether it is above that of the last step."""
        current, last = float(loss), memory.get("loss", math.inf)
        memory["loss"] = current
        return current > last


class LineSearch(StepRule, ABC):
    """A step rule that evaluates points along the line until one satisfies its conditions.

    If none does, it falls back to the lowest point tried where that is below the start, otherwise to the start.
    """

    needs_gradient = True

    def advance(self, line: Line, memory: dict[str, Any]) -> StepResult:
        """Move the parameters to the accepted point or to the fallback."""
        if line.slope == 0:
            return StepResult(0.0, True)  # a stationary point, or a learning rate of 0
        accepted = self.search(line, memory) if line.slope < 0 else None
        if accepted is not None:
            return StepResult(accepted.a, True)
        lowest = min(line.trials, key=lambda t: t.loss if math.isfinite(t.loss) else math.inf, default=line.origin)
        a = lowest.a if lowest.loss < line.origin.loss else 0.0
        if a != line.a:
            line.move(a)
        return StepResult(a, False)

    @abstractmethod
    def search(self, line: Line, memory: dict[str, Any]) -> LinePoint | None:
        """Return the accepted point, which is the last one tried, or None."""


class NonMonotone(LineSearch):
    """Sufficient decrease against the largest of the last losses (Grippo, Lampariello & Lucidi, 1986).

    Tries a = 1, factor, factor^2, ... until phi(a) <= max of the losses at the starts of the last ``interval`` steps +
    c1 a phi'(0), up to rounding. It evaluates losses only. ``interval=1`` is Armijo's rule.

    Args:
        c1: sufficient decrease.
        interval: number of losses to compare with.
        factor: between successive trials.
        max_iter: number of trials.
    """

    def __init__(self, c1: float = 1e-4, interval: int = 10, factor: float = 0.25, max_iter: int = 10) -> None:
        self.c1, self.interval, self.factor, self.max_iter = c1, interval, factor, max_iter

    def begin(self, memory: dict[str, Any], loss: Tensor) -> bool:
        """Record the loss among the last ``interval``; the momentum goes on."""
        memory["losses"] = [*memory.get("losses", []), float(loss)][-self.interval :]
        return False

    def search(self, line: Line, memory: dict[str, Any]) -> LinePoint | None:
        """Backtrack from a = 1."""
        reference = max(memory["losses"]) + line.rounding
        for count in range(self.max_iter):
            trial = line.value(self.factor**count)
            if trial.loss <= reference + self.c1 * trial.a * line.slope:
                return trial
        return None
