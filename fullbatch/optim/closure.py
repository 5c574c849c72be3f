"""The interface between an optimizer and the objective within one step."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fullbatch.typing import Tensors


class Point(NamedTuple):
    """The full loss at the current parameters and its own gradient."""

    loss: Tensor
    """full_loss, a scalar: L + weight_decay/2 ||t||^2 + penalty of the regularizer."""
    gradient: list[Tensor]
    """Its gradient, neither clipped nor otherwise transformed, in the order of ``parameters_of(optimizer)``."""


class Closure(Protocol):
    """Evaluates the objective at the current parameters, any number of times per step.

    All evaluations of a step are of the same function: same samples, augmentation, dropout masks and order, eta fixed
    at the learning rate of the group. They change nothing but ``.grad``; batch-norm statistics are updated by the first
    one only. Every evaluation is counted. Optimizers without a line search accept any callable that sets the gradients
    and returns the loss.
    """

    @property
    def pure(self) -> bool:
        """Whether ``loss`` needs forward passes only; otherwise it costs a gradient evaluation."""
        ...

    def __call__(self) -> Tensor:
        """Set the gradients of the parameters, transformed (clipped, ...), and return the full loss."""
        ...

    def evaluate(self) -> Point:
        """Set the gradients as a call does, and return the full loss with its own gradient."""
        ...

    def loss(self) -> Tensor:
        """Return the full loss without changing ``.grad``."""
        ...


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    """Return ``.grad`` of all parameters in the same order, zeros where it is None."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters_of(optimizer)]


def by_group(optimizer: Optimizer, tensors: Tensors) -> list[tuple[dict[str, Any], list[Tensor]]]:
    """Pair each group with its part of ``tensors``, one per parameter, in the order of ``parameters_of``."""
    rest = iter(tensors)
    return [(group, [next(rest) for _ in group["params"]]) for group in optimizer.param_groups]
