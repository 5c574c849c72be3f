"""Loss and accuracy on data that is not trained on."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fullbatch.objective.full_batch import FullBatchObjective, LossEvaluation
from fullbatch.tensors import preserved
from fullbatch.typing import Block, Blocks, LossFunction


def validate(
    model: nn.Module,
    loss_fn: LossFunction,
    blocks: Blocks,
    *,
    flips: bool = False,
    recalibration: Blocks | None = None,
    mixed_precision: bool | torch.dtype = False,
) -> LossEvaluation:
    """Evaluate ``model`` in evaluation mode and leave it as it was.

    Args:
        model: the module.
        loss_fn: (outputs, labels) -> mean loss.
        blocks: the data.
        flips: average the probabilities of each picture and its mirror image; the loss should then be cross-entropy,
            which makes it their negative log-likelihood.
        recalibration: training data; batch-norm statistics are re-estimated on it for this validation.
        mixed_precision: as in ``FullBatchObjective``.
    """
    recalibrated = nullcontext() if recalibration is None else recalibrated_batchnorm(model, recalibration)
    with recalibrated, mode(model, training=False):
        evaluated = FlipAveraged(model) if flips else model
        return FullBatchObjective(evaluated, loss_fn, blocks, mixed_precision=mixed_precision).loss()


class FlipAveraged(nn.Module):
    """The logarithm of the probabilities, averaged over each picture [B, C, H, W] and its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Return log-probabilities [B, classes]."""
        both = torch.stack([self.model(inputs), self.model(inputs.flip(-1))]).log_softmax(dim=-1)
        return both.logsumexp(dim=0) - torch.log(torch.tensor(2.0, dtype=both.dtype, device=both.device))


@contextmanager
def recalibrated_batchnorm(model: nn.Module, blocks: Iterable[Block]) -> Iterator[None]:
    """Inside, running statistics are the means over ``blocks`` of the blocks' own, weighted by size."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    with preserved(list(model.buffers())):
        with mode(model, training=False), torch.no_grad():
            for norm in norms:
                norm.train()
            seen = 0
            for inputs, labels, _ in blocks:
                seen += len(labels)
                for norm in norms:
                    norm.momentum = len(labels) / seen  # the first block replaces what was there
                model(inputs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        yield


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Set training or evaluation mode inside, and give every module its own back."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


Validate = Callable[[nn.Module, int], LossEvaluation]
"""(model, step) -> loss and accuracy on the validation set."""
