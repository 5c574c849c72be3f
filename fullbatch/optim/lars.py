"""Layer-wise adaptive rates: each parameter moves in proportion to its own norm."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from fullbatch.optim.closure import Closure, Point, by_group, gradients_of
from fullbatch.optim.wrapper import ClosureWrapper, Wrapper
from fullbatch.tensors import add_, norms, scale_each_, scaled
from fullbatch.typing import Tensors


class LARS(Wrapper):
    """LARS (You, Gitman & Ginsburg, 2017) around an optimizer; LARC with ``clip``.

    Scales the gradient g of each parameter p, with eta and weight decay w of its group, in the step that uses g:

        q = trust ||p|| / (||g|| + w ||p|| + eps),    LARC: q <- min(q/eta, 1),    g <- (g + w p) q.

    The gradient then contains the decay, and the base does not apply it. A parameter whose norm or gradient is 0 is
    left unchanged, decay included.

    Args:
        base: the optimizer.
        trust_coefficient: trust.
        eps: keeps q finite.
        clip: limits the rate of each parameter to the learning rate of the base.
    """

    def __init__(
        self, base: Optimizer, trust_coefficient: float = 0.02, eps: float = 1e-8, *, clip: bool = False
    ) -> None:
        super().__init__(base)
        self.trust_coefficient, self.eps, self.clip = trust_coefficient, eps, clip

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take a step of the base without its weight decay, and return the full loss at its start."""
        wrapped = self.wrap(closure)
        with self.decays([0.0] * len(self.param_groups)):
            loss: Tensor = self.base.step(wrapped)  # type: ignore[arg-type, assignment]
        return loss

    def wrap(self, closure: Closure) -> ClosureWrapper:
        """Return a closure that scales the gradients; its full loss still contains the decay."""
        return _Scaled(closure, self)

    @contextmanager
    def decays(self, values: Sequence[float]) -> Iterator[None]:
        """Set the weight decays of the groups that have one inside the context."""
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
        """Scale ``.grad`` of all parameters."""
        for group, gradients in by_group(self, gradients_of(self)):
            self._scale(group["params"], gradients, group["lr"], group.get("weight_decay", 0.0))

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


class _Scaled(ClosureWrapper):
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
