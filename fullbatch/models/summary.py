"""What a model is in numbers: parameters, cost, norm."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fullbatch.models.registry import build_model

_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class ModelSummary:
    """Of one model; ``flops`` is one forward pass of one image, a product and a sum counted as two."""

    name: str
    pixels: int
    parameters: int
    flops: int
    norm: str
    independent: bool


def summarize_model(name: str, /, *, pixels: int, channels: int = 3, classes: int = 10, **options: Any) -> ModelSummary:
    """Count on the meta device, without computing anything; arguments as for ``build_model``."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 (slow to import)

    with torch.device("meta"):
        model = build_model(name, channels=channels, classes=classes, pixels=pixels, **options).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, channels, pixels, pixels))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = counter.get_total_flops()
    return ModelSummary(name, pixels, parameters, flops, norm_of(model), independent_of_blocks(model))


def norm_of(model: nn.Module) -> str:
    """Return the kinds of normalization in the model by the names of their classes, or ``none``."""
    kinds = {type(module).__name__: None for module in model.modules() if isinstance(module, _NORMS)}
    return ", ".join(kinds) or "none"


def independent_of_blocks(model: nn.Module) -> bool:
    """Whether the full-batch gradient, without regularizer, is the same however the data are cut into blocks.

    It is where no layer mixes the samples of a batch, as batch norm does in training mode, and none drops anything at
    random, by masks that are a block's own.
    """
    return not any(isinstance(module, _BatchNorm) or _drops(module) for module in model.modules())


def _drops(module: nn.Module) -> bool:
    """Whether a layer is dropout or stochastic depth, and on; its rate goes by one of three names here and there."""
    rates = (getattr(module, name, 0.0) for name in ("p", "drop_rate", "drop_prob"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)
