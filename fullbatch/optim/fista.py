"""Accelerated proximal gradient descent."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fullbatch.optim.closure import by_group, gradients_of, parameters_of
from fullbatch.optim.eager import EagerOptimizer
from fullbatch.tensors import add_, added, copy_, dot, global_norm, scale_, scaled_sum
from fullbatch.typing import Tensors

Projection = Callable[[Tensors], None]
"""Projects tensors, taken as one vector, onto a set, in place."""

ACCELERATION = "acceleration"
"""Key of {"t": t} in the optimizer's state."""


class FISTA(EagerOptimizer):
    """FISTA (Beck & Teboulle, 2009) with the sequence of Liang, Luo & Schönlieb (2022).

    The parameters are y, where gradients are evaluated; the iterate x is kept in the state. With t_0 = 1 a step is

        x+ = P(y - eta g),    t+ = (p + sqrt(q + r t^2))/2,    y = x+ + ((t - 1)/t+)(x+ - x).

    Args:
        params: parameters or groups of them.
        lr: eta.
        fista_mod: p, q, r; (1, 1, 4) is the original sequence.
        projection: P; None: the identity.
        restart: restart from t = 1 and y = x+ when (y - x+)'(x+ - x) > 0, that is, when the momentum points uphill
            (O'Donoghue & Candès, 2015). Waits for the device once per step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        fista_mod: tuple[float, float, float] = (1.0, 1.0, 4.0),
        projection: Projection | None = None,
        restart: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr})
        self.fista_mod, self.projection, self.restart = fista_mod, projection, restart

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take a step and return the loss at its start."""
        with torch.enable_grad():
            loss = closure()
        y = parameters_of(self)
        x = [self.state[parameter].setdefault("x", parameter.detach().clone()) for parameter in y]
        x_plus: list[Tensor] = []
        for group, gradients in by_group(self, gradients_of(self)):
            x_plus += added([p.detach() for p in group["params"]], gradients, -group["lr"])
        if self.projection is not None:
            self.projection(x_plus)
        change = scaled_sum(x_plus, x, -1.0)
        uphill = self.restart and bool(dot(scaled_sum(y, x_plus, -1.0), change) > 0)
        acceleration: dict[str, float] = self.state[ACCELERATION]  # type: ignore[index]  # kept in state dicts as it is
        p, q, r = self.fista_mod
        t = 1.0 if uphill else acceleration.get("t", 1.0)
        acceleration["t"] = (p + (q + r * t * t) ** 0.5) / 2
        copy_(y, x_plus)
        add_(y, change, alpha=(t - 1) / acceleration["t"])
        copy_(x, x_plus)
        return loss


def l2_ball(radius: float) -> Projection:
    """Return the projection onto ||x|| <= radius, over all tensors together."""

    def project(tensors: Tensors) -> None:
        scale_(tensors, (radius / global_norm(tensors)).clamp(max=1.0))

    return project


def box(radius: float) -> Projection:
    """Return the projection onto -radius <= x_i <= radius."""

    def project(tensors: Tensors) -> None:
        copy_(tensors, [tensor.clamp(-radius, radius) for tensor in tensors])

    return project


PROJECTIONS: dict[str, Callable[[float], Projection]] = {"l2-ball": l2_ball, "box": box}
"""radius -> projection."""
