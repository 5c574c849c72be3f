"""Limited-memory BFGS with damping and a line search."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fullbatch.optim.closure import Closure, Point, gradients_of, parameters_of
from fullbatch.optim.descent import MEMORY
from fullbatch.optim.eager import EagerOptimizer
from fullbatch.optim.line_search import Line, StepRule
from fullbatch.optim.weight_decay import with_decay
from fullbatch.optim.wolfe import Wolfe
from fullbatch.tensors import add_, clones, dot, global_norm, scale_, scaled, scaled_sum
from fullbatch.typing import Tensors

STEPS, CHANGES = "steps", "changes"


class LBFGS(EagerOptimizer):
    """Limited-memory BFGS (Liu & Nocedal, 1989) with Powell's damping (1978).

    A step from t:

    1. g is the transformed gradient plus weight_decay t; d = H g by the two-loop recursion over the last pairs (s, y),
       started from (s'y / y'y) I of the newest pair, and from min(1, 1/||g||) I without any.
    2. The search says how far: t <- t - a eta d.
    3. s = t+ - t, and y is the change of the full loss' own gradient between the two: both taken from the function of
       this step, so that augmentation or dropout of the next one does not pass for curvature.
    4. With B the inverse of H, B s = -a eta g, a pair is good if s'y > eps s'B s. If not, it is skipped, or with
       damping y <- theta y + (1 - theta) B s, with the theta that makes s'y = eps s'B s.

    A search that finds no lower point, and a direction that does not descend, end the memory. ``torch.optim.LBFGS``
    takes many iterations a step, has neither damping nor Armijo's rule, and does not say when it misses the conditions.

    Args:
        params: parameters or groups of them.
        lr: eta, what a = 1 stands for.
        weight_decay: of the penalty weight_decay/2 ||t||^2.
        history_size: how many pairs are kept.
        eps: least curvature of a pair.
        damping: damp pairs with less instead of skipping them.
        search: a search that looks along the line.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        weight_decay: float = 0.0,
        history_size: int = 10,
        eps: float = 1e-2,
        damping: bool = True,
        search: StepRule | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.history_size, self.eps, self.damping = history_size, eps, damping
        self.search = search or Wolfe(alpha_max=float("inf"))
        self.statistics: dict[str, float] = {}
        """Of the last step: ``step_length`` a; ``search_failed``, ``pair_damped`` and ``pair_skipped``, 0 or 1."""

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take a step and return the full loss at its start."""
        start = closure.evaluate()
        memory: dict[str, Any] = self.state[MEMORY]  # type: ignore[index]  # kept in state dicts as it is
        self.search.remember(memory, start.loss)
        gradient = clones(with_decay(self, gradients_of(self)))
        line = Line(self, closure, self._direction(gradient), start)
        if line.slope > 0 and self._forget():
            line = Line(self, closure, self._direction(gradient), start)
        found = self.search.find(line, memory)
        self.statistics = {"step_length": found.a, "search_failed": float(not found.satisfied)}
        self.statistics |= {"pair_damped": 0.0, "pair_skipped": 0.0}
        if found.stuck:
            self._forget()
        elif found.a != 0:
            self._learn(closure, line, gradient, start)
        return start.loss

    def _direction(self, gradient: Tensors) -> list[Tensor]:
        pairs = self._pairs()
        if not pairs:
            return scaled(gradient, (1 / global_norm(gradient)).clamp(max=1.0))
        q, shares = clones(gradient), []
        for s, y in reversed(pairs):
            shares.append(dot(s, q) / dot(s, y))
            q = scaled_sum(q, y, -shares[-1])
        s, y = pairs[-1]
        scale_(q, dot(s, y) / dot(y, y))
        for (s, y), share in zip(pairs, reversed(shares), strict=True):
            q = scaled_sum(q, s, share - dot(y, q) / dot(s, y))
        return q

    def _learn(self, closure: Closure, line: Line, gradient: Tensors, start: Point) -> None:
        end = closure.evaluate().gradient if line.gradient is None else line.gradient
        s, y = line.displacement, scaled_sum(end, start.gradient, -1.0)
        expected = self._expected_change(gradient, line.a)
        curvature, least = float(dot(s, y)), self.eps * float(dot(s, expected))
        if not curvature > least:
            if not self.damping or not least > 0:
                self.statistics["pair_skipped"] = 1.0
                return
            theta = (least / self.eps - least) / (least / self.eps - curvature)
            scale_(y, theta)
            add_(y, expected, alpha=1 - theta)
            self.statistics["pair_damped"] = 1.0
        self._keep(s, y)

    def _expected_change(self, gradient: Tensors, a: float) -> list[Tensor]:
        """Return B s = -a eta g, what the gradient would have changed by if H were right."""
        rest = iter(gradient)
        found: list[Tensor] = []
        for group in self.param_groups:
            found += scaled([next(rest) for _ in group["params"]], -a * group["lr"])
        return found

    def _pairs(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        states = [self.state[parameter] for parameter in parameters_of(self)]
        count = len(states[0].get(STEPS, ()))
        return [([st[STEPS][i] for st in states], [st[CHANGES][i] for st in states]) for i in range(count)]

    def _keep(self, s: Tensors, y: Tensors) -> None:
        for parameter, step, change in zip(parameters_of(self), s, y, strict=True):
            state = self.state[parameter]
            state[STEPS] = [*state.get(STEPS, []), step][-self.history_size :]
            state[CHANGES] = [*state.get(CHANGES, []), change][-self.history_size :]

    def _forget(self) -> bool:
        """End the memory, and say whether there was any."""
        there = bool(self._pairs())
        for parameter in parameters_of(self):
            self.state.pop(parameter, None)
        return there
