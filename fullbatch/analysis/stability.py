"""Where optimizers stop being stable on a quadratic: the curvature that is too much for their learning rate.

On the loss h/2 t^2 a step is linear, and it diverges as soon as h exceeds a threshold, where t changes sign from step
to step (Cohen et al., ICLR 2021; 2022). With learning rate eta, momentum b and dampening d:

    gradient descent    2/eta
    Polyak              (2 + 2b) / ((1 - d) eta)
    Nesterov            (2 + 2b) / ((1 + 2b) eta)
    Adam                (2 + 2b1) / ((1 - b1) eta) for h/P, P the preconditioner

with weight decay as part of the loss, hence of h; Adam's, decoupled, makes its 2 a 2 - eta weight_decay.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fullbatch.optim.descent import Descent
from fullbatch.tensors import trainable

Group = dict[str, Any]


def _of_descent(group: Group) -> float:
    b: float = group["momentum"]
    if group["nesterov"]:
        return (2 + 2 * b) / ((1 + 2 * b) * group["lr"])
    return (2 + 2 * b) / ((1 - group["dampening"] if b else 1) * group["lr"])


def _of_adam(group: Group) -> float:
    b = group["betas"][0]
    decay = group["lr"] * group["weight_decay"] if group.get("decoupled_weight_decay", True) else 0.0
    return float((2 - decay) * (1 + b) / ((1 - b) * group["lr"]))


THRESHOLDS: dict[type[Optimizer], Callable[[Group], float]] = {
    Descent: _of_descent,
    torch.optim.SGD: _of_descent,
    torch.optim.Adam: _of_adam,
    torch.optim.AdamW: _of_adam,
}
"""Optimizers with a threshold of their own; those that search, clip or perturb have none."""


def is_adaptive(optimizer: Optimizer) -> bool:
    """Whether the threshold is one for the preconditioned curvature."""
    return isinstance(optimizer, torch.optim.Adam)  # AdamW is one


def has_threshold(optimizer: Optimizer) -> bool:
    """Whether ``stability_threshold`` knows the optimizer."""
    searches = isinstance(optimizer, Descent) and optimizer.step_rule.needs_gradient
    return type(optimizer) in THRESHOLDS and not searches


def stability_threshold(optimizer: Optimizer) -> float | None:
    """Return the threshold at the present learning rate, the lowest among the groups.

    None for an optimizer without one, and for a learning rate of 0, which nothing is too much for.
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

    With it a step is t - eta m/P. None for other optimizers, and before the first step.
    """
    if not is_adaptive(optimizer):
        return None
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    states = [(optimizer.state.get(p, {}), groups.get(p)) for p in trainable(model)]
    if not all(state and group for state, group in states):
        return None
    return [_denominator(state, group) for state, group in states if group is not None]


def _denominator(state: dict[str, Any], group: Group) -> Tensor:
    b1, b2 = group["betas"]
    steps = float(state["step"])
    squares: Tensor = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    found: Tensor = (1 - b1**steps) * ((squares / (1 - b2**steps)).sqrt() + group["eps"])
    return found.clamp_min(torch.finfo(found.dtype).tiny ** 0.5)
