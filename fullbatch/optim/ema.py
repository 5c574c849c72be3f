"""Exponential moving average of a model's weights (Polyak & Juditsky, 1992)."""

import copy

import torch
from torch import nn

from fullbatch.tensors import copy_, lerp_


class ExponentialMovingAverage:
    """The average e <- m e + (1 - m) t of a model's parameters t, itself a model.

    It starts as a copy. Floating-point buffers are averaged like parameters, integer buffers are copied.
    (``torch.optim.swa_utils`` would average integer counters, too, and start at the first update.)

    Args:
        model: the model at the start; ``self.model`` is the average.
        momentum: m.

    Raises:
        ValueError: momentum is not in [0, 1].
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum}: must be between 0 and 1")
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average the current parameters and buffers of ``model`` in."""
        averages = [*self.model.parameters(), *self.model.buffers()]
        pairs = list(zip(averages, [*model.parameters(), *model.buffers()], strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        lerp_([average for average, _ in floating], [value.detach() for _, value in floating], 1 - self.momentum)
        copy_([average for average, _ in counters], [value for _, value in counters])
