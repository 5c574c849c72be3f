"""One evaluation of a sub-batch: its loss, its gradient, and its loss as a function of the parameters."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.checks import FirstPass, scalar
from fullbatch.objective.gradient_penalty import GradientPenalty
from fullbatch.objective.hessian_products import Forward, SubBatchLoss, gradient_of
from fullbatch.objective.second_derivatives import twice_differentiable
from fullbatch.randomness import seeded
from fullbatch.tensors import device_of, global_norm
from fullbatch.transforms.clipping import ClipByNorm, clip_by_norm_
from fullbatch.typing import Block, LossFunction, Tensors


class SubBatchValue(NamedTuple):
    """The mean loss of a sub-batch and its accuracy (the share of samples whose largest output is the label's)."""

    loss: Tensor
    accuracy: Tensor


class SubBatchGradient(NamedTuple):
    """``SubBatchValue`` and the gradient.

    ``squared_norm`` is that of the plain gradient, before regularizer and clip; ``clipped`` is 1 or 0.
    """

    loss: Tensor
    accuracy: Tensor
    gradient: Tensors
    squared_norm: Tensor
    clipped: Tensor


@dataclass(frozen=True)
class SubBatchObjective:
    """Loss and gradient of one sub-batch, whose key fixes the dropout masks of every evaluation.

    The gradient is g_b by autograd, then g_b + eta/4 H_b v_b with a ``penalty``, then the ``clip``. The
    ``first_pass`` is shared by the copies of this object.
    """

    model: nn.Module
    loss_fn: LossFunction
    penalty: GradientPenalty | None = None
    clip: ClipByNorm | None = None
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    first_pass: FirstPass | None = None

    def plain(self) -> "SubBatchObjective":
        """Return the same objective without penalty and clip."""
        return replace(self, penalty=None, clip=None)

    def loss(self, block: Block) -> SubBatchValue:
        """Return the loss without a gradient."""
        with torch.no_grad(), self.naming(block, "loss"):
            outputs, loss = self._forward(block, self.model)
        return SubBatchValue(loss, _accuracy(outputs, block.labels))

    def gradient(self, block: Block, mean_gradient: Tensors | None = None) -> SubBatchGradient:
        """Return loss and gradient; ``mean_gradient`` is gbar, which a penalty with ``acc_strength`` needs."""
        penalty, scale = self.penalty, self.arithmetic.loss_scale
        create_graph = penalty is not None and penalty.create_graph
        with self.naming(block, "gradient"), twice_differentiable() if create_graph else nullcontext():
            outputs, loss = self._forward(block, self.model)
            gradient = gradient_of(loss, self.model, create_graph, scale)
        with torch.no_grad():
            squared_norm = global_norm(gradient).square()
        if penalty is not None:
            gradient = penalty.add_gradient_(gradient, self.point(block), mean_gradient)
        clipped = torch.zeros_like(squared_norm)
        if self.clip is not None:
            _, clipped = clip_by_norm_(gradient, self.clip.max_norm, self.clip.order)
        return SubBatchGradient(loss.detach(), _accuracy(outputs, block.labels), gradient, squared_norm, clipped)

    def point(self, block: Block) -> SubBatchLoss:
        """Return the sub-batch's loss as a function of the parameters."""
        return SubBatchLoss(self.model, lambda forward: self._forward(block, forward)[1], self.arithmetic.loss_scale)

    def naming(self, block: Block, kind: str) -> AbstractContextManager[None]:
        """Return a context in which the first errors of a ``kind`` of evaluation describe the block."""
        return nullcontext() if self.first_pass is None else self.first_pass.naming(block, self.model, kind)

    def _forward(self, block: Block, forward: Forward) -> tuple[Tensor, Tensor]:
        device = device_of(self.model)
        with seeded(block.key, device), self.arithmetic.autocast_on(device):
            try:
                outputs = forward(block.inputs)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ValueError(
                    f"a sub-batch of size {len(block.labels)} is too small for batch normalization in training mode, "
                    "which needs more than one value per channel"
                ) from error
            if not isinstance(outputs, Tensor):
                raise ValueError(f"model: returns {type(outputs).__name__}; expected a tensor with one row per sample")
            loss = scalar(self.loss_fn(outputs, block.labels), self.loss_fn)
            if self.first_pass is not None and self.first_pass.pending:
                self.first_pass(outputs, loss, block)
            return outputs.detach(), loss


def _accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    if outputs.ndim != 2 or labels.ndim != 1 or labels.is_floating_point():
        return torch.full((), torch.nan, device=outputs.device)  # accuracy is not defined, as in regression
    return (outputs.argmax(dim=1) == labels).float().mean()
