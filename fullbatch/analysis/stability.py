"""Stability thresholds of optimizers: the largest curvature at which they do not diverge on a quadratic.

On the loss h/2 t^2 a step is linear, and the iteration diverges, t changing sign in every step, as soon as h exceeds a
threshold (Cohen et al., ICLR 2021; 2022). With learning rate eta, momentum b and dampening d it is

    gradient descent    2/eta
    Polyak              (2 + 2b) / ((1 - d) eta)
    Nesterov            (2 + 2b) / ((1 + 2b) eta)
    Adam                (2 + 2b1) / ((1 - b1) eta) for h/P, P the preconditioner

where weight decay is part of the loss and so of h. Adam's decoupled decay replaces 2 by 2 - eta weight_decay.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fullbatch.optim.descent import Descent
from fullbatch.tensors import trainable

Group = dict[str, Any]


def _descent_threshold(group: Group) -> float:
    b: float = group["momentum"]
    if group["nesterov"]:
        return (2 + 2 * b) / ((1 + 2 * b) * group["lr"])
    return (2 + 2 * b) / ((1 - group["dampening"] if b else 1) * group["lr"])


def _adam_threshold(group: Group) -> float:
    b = group["betas"][0]
    decay = group["lr"] * group["weight_decay"] if group.get("decoupled_weight_decay", True) else 0.0
    return float((2 - decay) * (1 + b) / ((1 - b) * group["lr"]))


THRESHOLDS: dict[type[Optimizer], Callable[[Group], float]] = {
    Descent: _descent_threshold,
    torch.optim.SGD: _descent_threshold,
    torch.optim.Adam: _adam_threshold,
    torch.optim.AdamW: _adam_threshold,
}
"""Optimizers with a threshold; those with a line search, clipping or perturbation have none."""


def is_adaptive(optimizer: Optimizer) -> bool:
    """Return whether the threshold is one of the preconditioned curvature."""
    return isinstance(optimizer, torch.optim.Adam)  # AdamW is one


def has_threshold(optimizer: Optimizer) -> bool:
    """Return whether the optimizer has a threshold."""
    has_line_search = isinstance(optimizer, Descent) and optimizer.step_rule.needs_gradient
    return type(optimizer) in THRESHOLDS and not has_line_search


def stability_threshold(optimizer: Optimizer) -> float | None:
    """Return the threshold at the current learning rate, the lowest of the groups.

    None for an optimizer without one and for a learning rate of 0.
    """
    if not has_threshold(optimizer) or any(group["lr"] == 0 for group in optimizer.param_groups):
        return None
    formula = THRESHOLDS[type(optimizer)]
    return min(formula(group) for group in optimizer.param_groups)


def decay_of_loss(optimizer: Optimizer, model: nn.Module) -> list[float]:
    """Return, for each trainable parameter, the weight decay that is part of the loss; 0 where it is decoupled."""
    decoupled = isinstance(optimizer, torch.optim.AdamW)
    decays = {p: group.get("weight_decay", 0.0) for group in optimizer.param_groups for p in group["params"]}
    return [0.0 if decoupled else float(decays.get(parameter, 0.0)) for parameter in trainable(model)]


@torch.no_grad()
def preconditioner(optimizer: Optimizer, model: nn.Module) -> list[Tensor] | None:
    """Return Adam's P = (1 - b1^k) (sqrt(v/(1 - b2^k)) + eps) after k steps, shaped like the trainable parameters.

    A step is t <- t - eta m/P. None for other optimizers and before the first step.
    """
    if not is_adaptive(optimizer):
        return None
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    states = [(optimizer.state.get(p, {}), groups.get(p, {})) for p in trainable(model)]
    if not all(state and group for state, group in states):
        return None
    diagonals = []
    for state, group in states:
        (b1, b2), k = group["betas"], float(state["step"])
        squares: Tensor = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        diagonal: Tensor = (1 - b1**k) * ((squares / (1 - b2**k)).sqrt() + group["eps"])
        diagonals.append(diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny ** 0.5))
    return diagonals
