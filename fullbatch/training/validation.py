"""Loss and accuracy on data that is not trained on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.block_pass import SequentialPass
from fullbatch.objective.blocks import Data, as_blocks, iterate
from fullbatch.objective.evaluations import LossEvaluation
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.means import NO_SAMPLES
from fullbatch.tensors import copy_, device_of, mode, preserved
from fullbatch.typing import LossFunction, Tensors


def validate(
    model: nn.Module,
    loss_fn: LossFunction,
    blocks: Data,
    *,
    flips: bool = False,
    recalibration: Data | None = None,
    arithmetic: Arithmetic | None = None,
    all_reduce: Callable[[Tensors], None] | None = None,
) -> LossEvaluation:
    """Evaluate ``model`` in evaluation mode; its modes and buffers are restored afterwards.

    Args:
        model: the module.
        loss_fn: (outputs, labels) -> mean loss.
        blocks: the data, as in ``FullBatchObjective``.
        flips: average the probabilities of each image and its mirror image. With cross-entropy the loss is then their
            negative log-likelihood.
        recalibration: training data, on which batch-norm statistics are re-estimated for this validation.
        arithmetic: as in ``FullBatchObjective``.
        all_reduce: adds tensors up over processes, each with its own part of ``blocks`` and ``recalibration``.
    """
    recalibrated = (
        nullcontext() if recalibration is None else recalibrated_batchnorm(model, as_blocks(recalibration), all_reduce)
    )
    with recalibrated, mode(model, training=False):
        evaluated = FlipAveraged(model) if flips else model
        objective = FullBatchObjective(
            evaluated, loss_fn, blocks, arithmetic=arithmetic, block_pass=SequentialPass(all_reduce)
        )
        return objective.loss()


class FlipAveraged(nn.Module):
    """The logarithm of the probabilities, averaged over each image [B, C, H, W] and its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Return log-probabilities [B, classes]."""
        both = torch.stack([self.model(inputs), self.model(inputs.flip(-1))]).log_softmax(dim=-1)
        return both.logsumexp(dim=0) - torch.log(torch.tensor(2.0, dtype=both.dtype, device=both.device))


@contextmanager
def recalibrated_batchnorm(
    model: nn.Module, blocks: Iterable[Any], all_reduce: Callable[[Tensors], None] | None = None
) -> Iterator[None]:
    """Inside, running statistics are the means of the statistics of ``blocks``, weighted by size.

    ``all_reduce`` adds tensors up over processes, each with its own blocks.
    """
    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    with preserved(list(model.buffers())):
        with mode(model, training=False), torch.no_grad():
            for norm in norms:
                norm.train()
            num_samples = 0
            for inputs, labels, _ in iterate(blocks, required=all_reduce is None):
                num_samples += len(labels)
                for norm in norms:
                    norm.momentum = len(labels) / num_samples  # the first block replaces the old statistics
                model(inputs.to(device_of(model)))
            if all_reduce is not None and norms:
                _average(norms, num_samples, all_reduce)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        yield


def _average(norms: Sequence[_NormBase], num_samples: int, all_reduce: Callable[[Tensors], None]) -> None:
    """Average running statistics over processes, weighted by the number of samples of each, which may be 0."""
    statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
    sums = [
        (statistic * num_samples if num_samples else torch.zeros_like(statistic)).double() for statistic in statistics
    ]
    total = torch.full((), num_samples, dtype=torch.float64, device=statistics[0].device)
    all_reduce([*sums, total])
    if not num_samples and not total:
        raise ValueError(NO_SAMPLES)
    copy_(statistics, [entry / total for entry in sums])


Validate = Callable[[nn.Module, int], LossEvaluation]
"""(model, step) -> loss and accuracy on the validation set."""
