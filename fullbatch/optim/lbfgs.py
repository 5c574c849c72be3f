"""Limited-memory BFGS with damping and a line search."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fullbatch.optim.closure import Closure, Point, by_group, gradients_of, parameters_of
from fullbatch.optim.descent import STEP_RULE
from fullbatch.optim.eager import EagerOptimizer
from fullbatch.optim.line_search import Line, StepRule
from fullbatch.optim.weight_decay import with_decay
from fullbatch.optim.wolfe import Wolfe
from fullbatch.tensors import add_, clones, dot, global_norm, scale_, scaled, scaled_sum
from fullbatch.typing import Tensors

STEPS, CHANGES = "steps", "changes"
"""Keys of the lists of s and of y in the state of each parameter."""


class LBFGS(EagerOptimizer):
    """Limited-memory BFGS (Liu & Nocedal, 1989) with Powell's damping (1978).

    A step from t:

    1. g is the transformed gradient plus weight_decay t; d = H g by the two-loop recursion over the last pairs (s, y),
       started from (s'y / y'y) I of the newest pair, and from min(1, 1/||g||) I without any.
    2. The step rule chooses a: t <- t - a eta d.
    3. s = t+ - t, and y is the change of the full loss's own gradient from t to t+. Both gradients are of this step's
       function, so that the augmentation or dropout of the next step is not mistaken for curvature.
    4. With B the inverse of H, B s = -a eta g, a pair is accepted if s'y > eps s'B s. Otherwise it is skipped, or with
       damping y <- theta y + (1 - theta) B s, with the theta that makes s'y = eps s'B s.

    A direction that does not descend and a search that finds no lower point delete the history. ``torch.optim.LBFGS``
    takes many iterations per step, has neither damping nor Armijo's rule, and does not report missed conditions.

    Args:
        params: parameters or groups of them.
        lr: eta, the step length for a = 1.
        weight_decay: of the penalty weight_decay/2 ||t||^2.
        history_size: number of pairs.
        eps: least curvature of a pair.
        damping: damp pairs with less curvature instead of skipping them.
        step_rule: by default ``Wolfe`` without a largest a.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        weight_decay: float = 0.0,
        history_size: int = 10,
        eps: float = 1e-2,
        damping: bool = True,
        step_rule: StepRule | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.history_size, self.eps, self.damping = history_size, eps, damping
        self.step_rule = step_rule or Wolfe(alpha_max=float("inf"))
        self.statistics: dict[str, float] = {}
        """Of the last step: ``step_length`` a; ``search_failed``, ``pair_damped`` and ``pair_skipped``, 0 or 1."""

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take a step and return the full loss at its start."""
        start = closure.evaluate()
        memory: dict[str, Any] = self.state[STEP_RULE]  # type: ignore[index]
        self.step_rule.begin(memory, start.loss)
        gradient = clones(with_decay(self, gradients_of(self)))
        line = Line(self, closure, self._direction(gradient), start)
        if line.slope > 0 and self._delete_history():
            line = Line(self, closure, self._direction(gradient), start)
        result = self.step_rule.advance(line, memory)
        self.statistics = {"step_length": result.a, "search_failed": float(not result.satisfied)}
        self.statistics |= {"pair_damped": 0.0, "pair_skipped": 0.0}
        if result.stuck:
            self._delete_history()
        elif result.a != 0:
            self._add_pair(closure, line, gradient, start)
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

    def _add_pair(self, closure: Closure, line: Line, gradient: Tensors, start: Point) -> None:
        end = closure.evaluate().gradient if line.gradient is None else line.gradient
        s, y = line.displacement, scaled_sum(end, start.gradient, -1.0)
        expected: list[Tensor] = []  # B s = -a eta g
        for group, own in by_group(self, gradient):
            expected += scaled(own, -line.a * group["lr"])
        curvature, least = float(dot(s, y)), self.eps * float(dot(s, expected))
        if not curvature > least:
            if not self.damping or not least > 0:
                self.statistics["pair_skipped"] = 1.0
                return
            theta = (least / self.eps - least) / (least / self.eps - curvature)
            scale_(y, theta)
            add_(y, expected, alpha=1 - theta)
            self.statistics["pair_damped"] = 1.0
        for parameter, step, change in zip(parameters_of(self), s, y, strict=True):
            state = self.state[parameter]
            state[STEPS] = [*state.get(STEPS, []), step][-self.history_size :]
            state[CHANGES] = [*state.get(CHANGES, []), change][-self.history_size :]

    def _pairs(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        states = [self.state[parameter] for parameter in parameters_of(self)]
        count = len(states[0].get(STEPS, ()))
        return [([st[STEPS][i] for st in states], [st[CHANGES][i] for st in states]) for i in range(count)]

    def _delete_history(self) -> bool:
        """Delete all pairs and return whether there were any."""
        had_pairs = bool(self._pairs())
        for parameter in parameters_of(self):
            self.state.pop(parameter, None)
        return had_pairs
