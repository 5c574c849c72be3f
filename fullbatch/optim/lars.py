"""Layer-wise adaptive rates: every parameter moves in proportion to its own norm."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from fullbatch.optim.closure import Closure, Point, gradients_of
from fullbatch.optim.wrapper import ClosureAround, Wrapper
from fullbatch.tensors import add_, norms, scale_each_, scaled
from fullbatch.typing import Tensors


class LARS(Wrapper):
    """LARS (You, Gitman & Ginsburg, 2017) around an optimizer; with ``clip`` it is LARC.

    On the gradient g of each parameter p, of this very step, with eta and weight decay w of its group:

        q = trust ||p|| / (||g|| + w ||p|| + eps),    LARC: q <- min(q/eta, 1),    g <- (g + w p) q.

    The decay is then in the gradient, and the base does not apply it. A parameter is left alone, decay included, when
    its norm or its gradient's is 0.

    Args:
        base: the optimizer.
        trust_coefficient: trust.
        eps: keeps q finite.
        clip: whether no parameter may have more than the learning rate of the base.
    """

    def __init__(
        self, base: Optimizer, trust_coefficient: float = 0.02, eps: float = 1e-8, *, clip: bool = False
    ) -> None:
        super().__init__(base)
        self.trust_coefficient, self.eps, self.clip = trust_coefficient, eps, clip

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take a step of the base, without its weight decay, and return the full loss at its start."""
        around = self.around(closure)
        with self.decays([0.0] * len(self.param_groups)):
            loss: Tensor = self.base.step(around)  # type: ignore[arg-type, assignment]
        return loss

    def around(self, closure: Closure) -> ClosureAround:
        """Return a closure that scales the gradients; the full loss keeps its decay."""
        return _Scaled(closure, self)

    @contextmanager
    def decays(self, values: Sequence[float]) -> Iterator[None]:
        """Give each group that decays a weight decay inside."""
        pairs = zip(self.param_groups, values, strict=True)
        groups = [(group, value) for group, value in pairs if "weight_decay" in group]
        before = [group["weight_decay"] for group, _ in groups]
        for group, value in groups:
            group["weight_decay"] = value
        try:
            yield
        finally:
            for (group, _), value in zip(groups, before, strict=True):
                group["weight_decay"] = value

    @torch.no_grad()
    def scale(self) -> None:
        """Scale the gradients that the closure left."""
        rest = iter(gradients_of(self))
        for group in self.param_groups:
            own = [next(rest) for _ in group["params"]]
            self._scale(group["params"], own, group["lr"], group.get("weight_decay", 0.0))

    def _scale(self, parameters: Tensors, gradients: Tensors, lr: float, decay: float) -> None:
        size, slope = torch.stack(norms(parameters)), torch.stack(norms(gradients))
        rate = self.trust_coefficient * size / (slope + decay * size + self.eps)
        if self.clip:
            rate = (rate / lr).clamp(max=1.0)
        moves = (size != 0) & (slope != 0)
        if decay:
            pull = scaled(parameters, decay)
            scale_each_(pull, moves.to(size.dtype).unbind())
            add_(gradients, pull)
        scale_each_(gradients, torch.where(moves, rate, 1.0).unbind())


class _Scaled(ClosureAround):
    def __init__(self, closure: Closure, lars: LARS) -> None:
        super().__init__(closure)
        self.lars = lars
        self.decays = [group.get("weight_decay", 0.0) for group in lars.param_groups]

    def __call__(self) -> Tensor:
        with self.lars.decays(self.decays):
            loss = super().__call__()
            self.lars.scale()
        return loss

    def evaluate(self) -> Point:
        with self.lars.decays(self.decays):
            point = super().evaluate()
            self.lars.scale()
        return point

    def loss(self) -> Tensor:
        with self.lars.decays(self.decays):
            return super().loss()
