"""What an optimizer may ask of the objective within one step, in which the objective is one function."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Point(NamedTuple):
    """The full loss at the present parameters, and its own gradient."""

    loss: Tensor
    """full_loss, a scalar: L + weight_decay/2 ||t||^2 + penalty of the regularizer."""
    gradient: list[Tensor]
    """Its gradient, neither clipped nor otherwise transformed, in the order of ``parameters_of(optimizer)``."""


class Closure(Protocol):
    """Evaluates the objective at the present parameters, as often as an optimizer likes.

    All evaluations of a step are of one function: the same samples, augmentation, dropout masks and order, eta fixed at
    the group's learning rate. They leave no trace but ``.grad``; batch-norm statistics move in the first one alone.
    Each is counted. Optimizers that never search take any callable that sets gradients and returns the loss.
    """

    @property
    def pure(self) -> bool:
        """Whether ``loss`` is forward passes alone; else it costs a gradient evaluation."""
        ...

    def __call__(self) -> Tensor:
        """Set the gradients of the parameters, transformed (clipped, ...), and return the full loss."""
        ...

    def evaluate(self) -> Point:
        """Do as a call does, and return the full loss with its own gradient."""
        ...

    def loss(self) -> Tensor:
        """Return the full loss and leave ``.grad`` alone."""
        ...


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    """Return what the closure left in ``.grad``, zeros for a parameter that it left out, in the same order."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters_of(optimizer)]
