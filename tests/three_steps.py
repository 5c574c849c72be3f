"""All that an objective finds on the way of three steps, for ways of evaluation that must not matter."""

from typing import Any

import torch
from cases import CLASSES, cut, samples
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer

SIZES = [5] * 6 + [3]


def normalized() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES)
    ).double()


def objective(model: nn.Module, *, sizes: list[int] = SIZES, **options: Any) -> FullBatchObjective:
    """The objective on 33 samples; options of the regularizer are some, too."""
    strengths = {
        name: options.pop(name) for name in ("block_strength", "acc_strength", "implementation") if name in options
    }
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    regularizer = GradRegularizer(model, optimizer, F.cross_entropy, **strengths) if strengths else None
    device = next(model.parameters()).device
    data = [(inputs.to(device), labels.to(device)) for inputs, labels in cut(*samples(), sizes)]
    return FullBatchObjective(model, F.cross_entropy, data, regularizer=regularizer, **options)


def steps(model: nn.Module, **options: Any) -> list[Tensor]:
    """Everything three steps find, with parameters, learning rate and batch-norm statistics moving between them."""
    found, target = [], objective(model, **options)
    for rate in (0.1, 0.2, 0.05):
        if target.regularizer is not None:
            target.regularizer.optimizer.param_groups[0]["lr"] = rate
        evaluation = target.evaluate(update_buffers=True)
        found += [evaluation.loss, evaluation.accuracy, evaluation.squared_norms, evaluation.num_clipped]
        found += [*evaluation.gradient, *(buffer.clone() for buffer in model.buffers()), target.loss().loss]
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), evaluation.gradient, strict=True):
                parameter.sub_(rate * gradient)
    return found


VARIANTS: list[dict[str, Any]] = [
    {},
    {"batch_clip": 0.5},
    {"arithmetic": Arithmetic(autocast=torch.bfloat16)},
    {"gradient_average": "moving"},
    {"block_strength": 0.5},
    {"block_strength": 0.5, "acc_strength": 0.3},
    {"block_strength": 0.5, "implementation": "central-differences"},
    {"block_strength": 0.5, "implementation": "autograd"},
    {"block_strength": 0.5, "implementation": "forward-over-reverse"},
    {"sub_batch": 2},
]
"""Options of the objective and its regularizer."""
