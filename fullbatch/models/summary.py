"""Summaries of models: parameters, cost, normalization."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fullbatch.models.registry import build_model

_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
_RATES = ("p", "drop_rate", "drop_prob")  # of dropout and stochastic depth, in PyTorch and elsewhere


@dataclass(frozen=True)
class ModelSummary:
    """Summary of a model for images of ``pixels``.

    ``flops`` counts the forward pass of one image, a multiplication and an addition as two. ``independent`` is whether
    the full-batch gradient is independent of the blocks, see ``independent_of_blocks``.
    """

    name: str
    pixels: int
    parameters: int
    flops: int
    norm: str
    independent: bool


def summarize_model(name: str, /, *, pixels: int, channels: int = 3, classes: int = 10, **options: Any) -> ModelSummary:
    """Return the summary of a model, counted on the meta device; arguments as for ``build_model``."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 (slow to import)

    with torch.device("meta"):
        model = build_model(name, channels=channels, classes=classes, pixels=pixels, **options).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, channels, pixels, pixels))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = counter.get_total_flops()
    return ModelSummary(name, pixels, parameters, flops, norm_of(model), independent_of_blocks(model))


def norm_of(model: nn.Module) -> str:
    """Return the class names of the normalization layers in the model, or ``none``."""
    names = {type(module).__name__: None for module in model.modules() if isinstance(module, _NORMS)}
    return ", ".join(names) or "none"


def independent_of_blocks(model: nn.Module) -> bool:
    """Return whether the full-batch gradient, without regularizer, is independent of how the data are split.

    It is unless a layer mixes the samples of a batch, as batch norm does in training mode, or drops at random.
    """
    for module in model.modules():
        rates = (getattr(module, name, 0.0) for name in _RATES)
        if isinstance(module, _BatchNorm) or any(isinstance(rate, float) and rate > 0 for rate in rates):
            return False
    return True
