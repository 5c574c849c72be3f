"""The loss and the regularized gradient of one sub-batch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fullbatch.objective.gradient_penalty import GradRegularizer, autocast
from fullbatch.objective.hessian_products import Forward, SubBatchLoss, gradient_of
from fullbatch.randomness import seeded
from fullbatch.tensors import device_of, global_norm
from fullbatch.typing import Block, LossFunction, Tensors

Clip = Callable[[Tensors], Tensor]
"""Shortens gradients in place and says whether it had to (a scalar, 0 or 1)."""


class BlockLoss(NamedTuple):
    """Mean loss of a block, and its accuracy (the share of samples whose largest output is the label's)."""

    loss: Tensor
    accuracy: Tensor


class BlockGradient(NamedTuple):
    """``BlockLoss`` and the gradient; ``squared_norm`` is the plain gradient's, before regularizer and clip."""

    loss: Tensor
    accuracy: Tensor
    gradient: Tensors
    squared_norm: Tensor
    clipped: Tensor


class BlockObjective:
    """Loss and gradient of one sub-batch, whose key fixes the dropout masks of every evaluation.

    1. ``loss``: the mean loss, under autocast where asked for.
    2. ``gradient``: g_b by autograd, then the regularizer's g_b + eta/4 H_b v_b, then the clip.
    3. ``point``: the loss as a function of the parameters, for Hessian-vector products.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        *,
        regularizer: GradRegularizer | None = None,
        clip: Clip | None = None,
        mixed_precision: bool | torch.dtype = False,
        loss_scale: float = 1.0,
    ) -> None:
        self.model, self.loss_fn = model, loss_fn
        self.regularizer, self.clip = regularizer, clip
        self.mixed_precision, self.loss_scale = mixed_precision, loss_scale

    def plain(self) -> "BlockObjective":
        """Return the same without regularizer and clip."""
        return BlockObjective(
            self.model, self.loss_fn, mixed_precision=self.mixed_precision, loss_scale=self.loss_scale
        )

    def loss(self, block: Block) -> BlockLoss:
        """Return the loss without a gradient."""
        with torch.no_grad():
            outputs, loss = self._evaluate(block, self.model)
        return BlockLoss(loss, _accuracy(outputs, block.labels))

    def gradient(self, block: Block, mean_gradient: Tensors | None = None, *, plain: bool = False) -> BlockGradient:
        """Return loss and gradient; ``mean_gradient`` is gbar; ``plain`` leaves out regularizer and clip."""
        regularizer = None if plain else self.regularizer
        outputs, loss = self._evaluate(block, self.model)
        create_graph = regularizer is not None and regularizer.create_graph
        gradient = gradient_of(loss, self.model, create_graph, self.loss_scale)
        with torch.no_grad():
            squared_norm = global_norm(gradient).square()
        if regularizer is not None:
            gradient = regularizer(gradient, block.inputs, block.labels, mean_gradient)
        clipped = torch.zeros_like(squared_norm) if plain or self.clip is None else self.clip(gradient)
        return BlockGradient(loss.detach(), _accuracy(outputs, block.labels), gradient, squared_norm, clipped)

    def point(self, block: Block) -> SubBatchLoss:
        """Return the block's loss as a function of the parameters."""
        return SubBatchLoss(self.model, lambda forward: self._evaluate(block, forward)[1], self.loss_scale)

    def _evaluate(self, block: Block, forward: Forward) -> tuple[Tensor, Tensor]:
        device = device_of(self.model)
        with seeded(block.key, device), autocast(device, self.mixed_precision):
            outputs = forward(block.inputs)
            return outputs.detach(), self.loss_fn(outputs, block.labels)


def _accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    if outputs.ndim != 2 or labels.ndim != 1:
        return torch.full((), torch.nan, device=outputs.device)  # a user's regression has no accuracy
    return (outputs.argmax(dim=1) == labels).float().mean()
