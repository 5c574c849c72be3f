r"""Line searches: how far to go along a direction.

With t the parameters, eta the learning rate and d the direction, phi(a) = full_loss(t - a eta d), a > 0; a = 1 is the
step without a search. "Up to rounding" below means: a loss may exceed its bound by 4 eps |phi(0)|, eps the machine
precision of the parameters, since no search can see less.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from fullbatch.optim.closure import Closure, Point, parameters_of
from fullbatch.tensors import add_, clones, copy_, dot


class Trial(NamedTuple):
    """phi at a, and its slope there where it was computed."""

    a: float
    loss: float
    slope: float | None


class Found(NamedTuple):
    """What a search decided; the parameters are there."""

    a: float
    satisfied: bool
    """Whether its conditions hold; else the fallback was taken."""

    @property
    def stuck(self) -> bool:
        """Whether the search failed and the step ends where it starts."""
        return not self.satisfied and self.a == 0


class Line:
    """phi: moves the parameters, evaluates there, remembers. Every number it returns waits for the device.

    Args:
        optimizer: gives the parameters and the learning rates.
        closure: evaluates.
        directions: d, in the order of ``parameters_of(optimizer)``.
        start: what the closure found at the present parameters.
    """

    def __init__(self, optimizer: Optimizer, closure: Closure, directions: Sequence[Tensor], start: Point) -> None:
        self.closure, self.directions = closure, list(directions)
        self._groups = [(group["params"], float(group["lr"])) for group in optimizer.param_groups]
        self._start = clones(parameters_of(optimizer))
        self.gradient: list[Tensor] | None = start.gradient
        """The full loss' own gradient at ``a``, None where only its value is known."""
        self.a = 0.0
        self.slope = self._slope(start.gradient)
        """phi'(0), negative for a direction that descends."""
        self.origin = Trial(0.0, float(start.loss), self.slope)
        self.rounding = 4 * torch.finfo(self._start[0].dtype).eps * abs(self.origin.loss)
        self.trials: list[Trial] = []

    @property
    def displacement(self) -> list[Tensor]:
        """How far the parameters are from the start."""
        present = [parameter for parameters, _ in self._groups for parameter in parameters]
        return [parameter.detach() - start for parameter, start in zip(present, self._start, strict=True)]

    def move(self, a: float) -> None:
        """Go to t - a eta d; bitwise back to t for a = 0."""
        rest, starts = iter(self.directions), iter(self._start)
        for parameters, lr in self._groups:
            copy_(parameters, [next(starts) for _ in parameters])
            own = [next(rest) for _ in parameters]
            if a != 0:
                add_(parameters, own, alpha=-a * lr)
        self.a, self.gradient = a, None

    def value(self, a: float) -> Trial:
        """Go to ``a`` and evaluate phi, by forward passes alone where the objective allows it."""
        if not self.closure.pure:
            return self.value_and_slope(a)  # for the price of one
        self.move(a)
        return self._keep(Trial(a, float(self.closure.loss()), None))

    def value_and_slope(self, a: float) -> Trial:
        """Go to ``a`` and evaluate phi and its slope."""
        if self.a != a:
            self.move(a)
        point = self.closure.evaluate()
        self.gradient = point.gradient
        return self._keep(Trial(a, float(point.loss), self._slope(point.gradient)))

    def _keep(self, trial: Trial) -> Trial:
        self.trials.append(trial)
        return trial

    def _slope(self, gradient: Sequence[Tensor]) -> float:
        rest, directions = iter(gradient), iter(self.directions)
        slopes = [
            -lr * float(dot([next(rest) for _ in parameters], [next(directions) for _ in parameters]))
            for parameters, lr in self._groups
        ]
        return math.fsum(slopes) if all(map(math.isfinite, slopes)) else math.nan


class StepRule:
    """Fixed: the whole step, whatever the loss does there. The other searches are its exchangeable replacements."""

    needs_gradient = False
    """Whether it looks along the line, and so wants phi and its slope at the start."""

    def remember(self, memory: dict[str, Any], loss: Tensor) -> bool:
        """Take note of the loss where the step starts, in ``memory``, which is part of the optimizer's state.

        Returns whether the momentum should start again.
        """
        return False

    def find(self, line: Line, memory: dict[str, Any]) -> Found:
        """Move the parameters to where the step ends."""
        line.move(1.0)
        return Found(1.0, True)


class Restarting(StepRule):
    """The whole step; the momentum starts again when the loss has risen (O'Donoghue & Candès, 2015)."""

    def remember(self, memory: dict[str, Any], loss: Tensor) -> bool:
        """Say whether the loss is above the last step's."""
        present, last = float(loss), memory.get("loss", math.inf)
        memory["loss"] = present
        return present > last


class LineSearch(StepRule, ABC):
    """A search that evaluates along the line until its conditions hold.

    Where they cannot be met the fallback is the lowest of the points tried, if it is below the start, else the start.
    """

    needs_gradient = True

    def find(self, line: Line, memory: dict[str, Any]) -> Found:
        """StepRule, or fall back."""
        if line.slope == 0:
            return Found(0.0, True)  # a stationary point, or a learning rate of 0
        accepted = self.search(line, memory) if line.slope < 0 else None
        if accepted is not None:
            return Found(accepted.a, True)
        lowest = min(line.trials, key=lambda t: t.loss if math.isfinite(t.loss) else math.inf, default=line.origin)
        a = lowest.a if lowest.loss < line.origin.loss else 0.0
        if a != line.a:
            line.move(a)
        return Found(a, False)

    @abstractmethod
    def search(self, line: Line, memory: dict[str, Any]) -> Trial | None:
        """Return the accepted trial, which is the last one made, or None."""


class NonMonotone(LineSearch):
    """Sufficient decrease against the largest of the last losses (Grippo, Lampariello & Lucidi, 1986).

    Tries a = 1, factor, factor^2, ... until phi(a) <= max of the losses at the starts of the last ``interval`` steps +
    c1 a phi'(0), up to rounding; losses alone are evaluated. ``interval=1`` is Armijo's rule.
    """

    def __init__(self, c1: float = 1e-4, interval: int = 10, factor: float = 0.25, max_iter: int = 10) -> None:
        self.c1, self.interval, self.factor, self.max_iter = c1, interval, factor, max_iter

    def remember(self, memory: dict[str, Any], loss: Tensor) -> bool:
        """Keep the last losses."""
        memory["losses"] = [*memory.get("losses", []), float(loss)][-self.interval :]
        return False

    def search(self, line: Line, memory: dict[str, Any]) -> Trial | None:
        """Backtrack."""
        reference = max(memory["losses"]) + line.rounding
        for count in range(self.max_iter):
            trial = line.value(self.factor**count)
            if trial.loss <= reference + self.c1 * trial.a * line.slope:
                return trial
        return None
