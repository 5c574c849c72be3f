"""Exponential moving average of a model's weights (Polyak & Juditsky, 1992)."""

import copy

import torch
from torch import nn

from fullbatch.tensors import copy_, lerp_


class ExponentialMovingAverage:
    """A copy of the model that follows it: e <- m e + (1 - m) t.

    ``model`` is the average. It starts as a copy; floating-point buffers are averaged like parameters, integer buffers
    are copied. (``torch.optim.swa_utils`` would average integer counters, too, and start at the first update.)
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum}: accepted are numbers from 0 to 1")
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's present parameters and buffers."""
        ours = [*self.model.parameters(), *self.model.buffers()]
        theirs = [*model.parameters(), *model.buffers()]
        pairs = list(zip(ours, theirs, strict=True))
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        counted = [pair for pair in pairs if not pair[0].is_floating_point()]
        lerp_([own for own, _ in averaged], [other.detach() for _, other in averaged], 1 - self.momentum)
        copy_([own for own, _ in counted], [other for _, other in counted])
