"""Accelerated proximal gradient descent."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fullbatch.optim.closure import gradients_of, parameters_of
from fullbatch.optim.eager import EagerOptimizer
from fullbatch.tensors import add_, added, copy_, dot, global_norm, scale_, scaled_sum
from fullbatch.typing import Tensors

Projection = Callable[[Tensors], None]
"""Moves tensors, taken as one vector, to the nearest point of a set, in place."""

ACCELERATION = "acceleration"


class FISTA(EagerOptimizer):
    """FISTA (Beck & Teboulle, 2009) with the sequence of Liang, Luo & Schönlieb (2022).

    The parameters are y, where gradients are taken; x, the point that descends, is state. With t_0 = 1 a step is

        x+ = P(y - eta g),    t+ = (p + sqrt(q + r t^2))/2,    y = x+ + ((t - 1)/t+)(x+ - x).

    Args:
        params: parameters or groups of them.
        lr: eta.
        fista_mod: p, q, r; (1, 1, 4) is the original sequence.
        projection: P, None for none.
        restart: start again from t = 1 and y = x+ when (y - x+)'(x+ - x) > 0, that is, when the momentum points uphill
            (O'Donoghue & Candès, 2015). Waits for the device once a step.
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
        x_plus = self._proximal_step()
        factor = self._momentum(uphill=self.restart and self._points_uphill(y, x_plus, x))
        copy_(y, x_plus)
        add_(y, scaled_sum(x_plus, x, -1.0), alpha=factor)
        copy_(x, x_plus)
        return loss

    def _proximal_step(self) -> list[Tensor]:
        rest = iter(gradients_of(self))
        x_plus: list[Tensor] = []
        for group in self.param_groups:
            x_plus += added([p.detach() for p in group["params"]], [next(rest) for _ in group["params"]], -group["lr"])
        if self.projection is not None:
            self.projection(x_plus)
        return x_plus

    def _momentum(self, *, uphill: bool) -> float:
        """Return (t - 1)/t+ and move on to t+."""
        acceleration: dict[str, float] = self.state[ACCELERATION]  # type: ignore[index]  # kept in state dicts as it is
        p, q, r = self.fista_mod
        t = 1.0 if uphill else acceleration.get("t", 1.0)
        acceleration["t"] = (p + (q + r * t * t) ** 0.5) / 2
        return (t - 1) / acceleration["t"]

    @staticmethod
    def _points_uphill(y: Tensors, x_plus: Tensors, x: Tensors) -> bool:
        return bool(dot(scaled_sum(y, x_plus, -1.0), scaled_sum(x_plus, x, -1.0)) > 0)


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
