"""Test problems with known minima and a minimal closure for optimizers."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fullbatch.optim.closure import Point, parameters_of
from fullbatch.optim.weight_decay import decay_penalty, with_decay

Function = Callable[[Tensor], Tensor]


class Counted:
    """Evaluates ``function`` of one parameter and counts; the last evaluation is cached."""

    pure = True

    def __init__(self, function: Function, parameter: nn.Parameter, optimizer: Optimizer) -> None:
        self.function, self.parameter, self.optimizer = function, parameter, optimizer
        self.num_gradients = self.num_losses = 0
        self._cached: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self) -> Tensor:
        return self.evaluate().loss

    def evaluate(self) -> Point:
        if self._cached is None or not torch.equal(self._cached[0], self.parameter):
            self.num_gradients += 1
            with torch.enable_grad():
                loss = self.function(self.parameter)
                (gradient,) = torch.autograd.grad(loss, [self.parameter])
            self._cached = (self.parameter.detach().clone(), loss.detach(), gradient)
        _, loss, gradient = self._cached
        self.parameter.grad = gradient.clone()
        return Point(loss + decay_penalty(self.optimizer), with_decay(self.optimizer, [gradient]))

    @torch.no_grad()
    def loss(self) -> Tensor:
        self.num_losses += 1
        return self.function(self.parameter) + decay_penalty(self.optimizer)


def minimize(
    function: Function, start: Tensor, build: Callable[[list[nn.Parameter]], Optimizer], steps: int
) -> tuple[Tensor, list[float], Counted]:
    """Return the parameters after ``steps`` steps, all losses (the last one included), and the closure."""
    parameter = nn.Parameter(start.clone())
    optimizer = build([parameter])
    closure = Counted(function, parameter, optimizer)
    losses = [float(optimizer.step(closure)) for _ in range(steps)]  # type: ignore[arg-type]
    assert parameters_of(optimizer)[0] is parameter
    return parameter.detach(), [*losses, float(closure.loss())], closure


def rosenbrock(x: Tensor) -> Tensor:
    """Return Rosenbrock's function, whose minimum is 0 at (1, 1, ...)."""
    return (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


def quadratic(size: int, condition: float = 100.0, seed: int = 0) -> tuple[Function, Tensor]:
    """Return (x - s)'A(x - s)/2 with eigenvalues of A from 1/condition to 1, and its minimizer s."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.logspace(-float(np.log10(condition)), 0, size, dtype=torch.float64)) @ basis.T
    solution = torch.randn(size, generator=generator, dtype=torch.float64)
    return lambda x: (x - solution) @ matrix @ (x - solution) / 2, solution


def logistic_regression(num: int = 60, features: int = 5, seed: int = 3) -> tuple[Function, Tensor]:
    """Return the mean logistic loss of data that are not separable, and a start."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num, features, generator=generator, dtype=torch.float64)
    truth = torch.randn(features, generator=generator, dtype=torch.float64)
    noise = torch.randn(num, generator=generator, dtype=torch.float64)
    signs = torch.sign(inputs @ truth + 1.5 * noise)
    return lambda w: nn.functional.softplus(-signs * (inputs @ w)).mean(), torch.zeros(features, dtype=torch.float64)


def as_numpy(function: Function) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Return a function of arrays that returns value and gradient, for SciPy."""

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(x, requires_grad=True)
        loss = function(point)
        return float(loss.detach()), torch.autograd.grad(loss, point)[0].numpy()

    return value_and_gradient
