"""Sharpness-aware minimization around any optimizer."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from fullbatch.optim.closure import Closure, Point, gradients_of, parameters_of
from fullbatch.optim.wrapper import ClosureWrapper, Wrapper
from fullbatch.tensors import add_, global_norm, preserved, scaled

TINY = 1e-12
"""Keeps the direction finite where the gradient is 0."""


class SAM(Wrapper):
    """SAM (Foret, Kleiner, Mobahi & Neyshabur, ICLR 2021).

    A step from t:

    1. g, transformed (clipped) as usual, is evaluated at t.
    2. The gradient for the base is evaluated and transformed at t + e(g), e = rho g/(||g|| + 1e-12).
    3. The parameters are restored bitwise, and the base takes its step from t.

    Args:
        base: the optimizer, without a line search.
        rho: length of the perturbation e.
    """

    def __init__(self, base: Optimizer, rho: float = 0.05) -> None:
        super().__init__(base)
        self.rho = rho

    def wrap(self, closure: Closure) -> ClosureWrapper:
        """Return a closure whose gradient is evaluated at the perturbed parameters."""
        return _Perturbed(closure, self)

    def perturbation(self) -> list[Tensor]:
        """Return e(g) for the g in ``.grad``."""
        gradients = gradients_of(self)
        return scaled(gradients, self.rho / (global_norm(gradients) + TINY))


class ASAM(SAM):
    """Adaptive SAM (Kwon, Kim, Park & Choi, ICML 2021): SAM in units of the parameters.

    With T = |t| + eta, entry by entry, e = rho T^2 g/(||T g|| + 1e-12); for eta = 0 rescaling the parameters without
    changing the function does not change the perturbed function.

    Args:
        base: the optimizer, without a line search.
        rho: length of the perturbation in units of T.
        eta: perturbs parameters of 0, too.
    """

    def __init__(self, base: Optimizer, rho: float = 0.5, eta: float = 0.01) -> None:
        super().__init__(base, rho)
        self.eta = eta

    def perturbation(self) -> list[Tensor]:
        """Return e(g) for the g in ``.grad``."""
        units = [parameter.detach().abs() + self.eta for parameter in parameters_of(self)]
        stretched = [unit * gradient for unit, gradient in zip(units, gradients_of(self), strict=True)]
        rate = self.rho / (global_norm(stretched) + TINY)
        return [rate * unit * gradient for unit, gradient in zip(units, stretched, strict=True)]


class _Perturbed(ClosureWrapper):
    def __init__(self, closure: Closure, sam: SAM) -> None:
        super().__init__(closure)
        self.sam = sam

    def __call__(self) -> Tensor:
        loss = super().__call__()
        parameters = parameters_of(self.sam)
        with torch.no_grad(), preserved(parameters):
            add_(parameters, self.sam.perturbation())
            super().__call__()
        return loss

    def evaluate(self) -> Point:
        raise ValueError("SAM: not with a line search, because its gradient is not that of the loss along the line")
