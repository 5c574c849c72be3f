"""Weight decay: parameter groups, penalty and gradient."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fullbatch.optim.closure import by_group
from fullbatch.tensors import global_norm, scaled_sum
from fullbatch.typing import Tensors


def parameter_groups(model: nn.Module, *, only_linear_layers: bool) -> list[dict[str, Any]]:
    """Return the trainable parameters as optimizer groups.

    With ``only_linear_layers``, parameters of at most one dimension (biases, norm weights) and those named ``gain``
    form a second group with weight decay 0.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not only_linear_layers:
        return [{"params": [p for _, p in named]}]
    exempt = [p.ndim <= 1 or name.split(".")[-1] == "gain" for name, p in named]
    groups: list[dict[str, Any]] = [
        {"params": [p for (_, p), free in zip(named, exempt, strict=True) if not free]},
        {"params": [p for (_, p), free in zip(named, exempt, strict=True) if free], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@torch.no_grad()
def decay_penalty(optimizer: Optimizer) -> Tensor:
    """Return the sum over groups of weight_decay/2 ||t||^2, a scalar."""
    penalties = [
        group["weight_decay"] / 2 * global_norm(group["params"]).square()
        for group in optimizer.param_groups
        if group.get("weight_decay")
    ]
    device = optimizer.param_groups[0]["params"][0].device
    return torch.stack(penalties).sum() if penalties else torch.zeros((), device=device)


@torch.no_grad()
def with_decay(optimizer: Optimizer, gradients: Tensors) -> list[Tensor]:
    """Return ``gradients``, in the order of ``parameters_of``, plus weight_decay t; new tensors where that is not 0."""
    decayed: list[Tensor] = []
    for group, own in by_group(optimizer, gradients):
        decay = group.get("weight_decay")
        decayed += scaled_sum(own, group["params"], decay) if decay else own
    return decayed
