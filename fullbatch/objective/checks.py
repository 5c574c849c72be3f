"""Checks of what an objective is given: data that are the same in every iteration, and a loss that is a mean.

Both are what makes sum_b n_b/N l_b one number for every partition of the data.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from fullbatch.tensors import preserved
from fullbatch.typing import LossFunction


def require_repeatable(data: Iterable[Any]) -> None:
    """Raise ``ValueError`` for an iterator, which is used up after one pass, and for a ``DataLoader`` that shuffles."""
    if isinstance(data, Iterator):
        raise ValueError(
            f"FullBatchObjective: the data are an iterator ({type(data).__name__}), which ends after one pass; use "
            "data that can be iterated repeatedly: a list of (inputs, labels) blocks, or the DataLoader itself"
        )
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        order = data.sampler if data.batch_sampler is None else data.batch_sampler
        while type(order) is BatchSampler:
            order = order.sampler
        sequential = isinstance(order, SequentialSampler | list | tuple | range)
        if not sequential and not (isinstance(order, DistributedSampler) and not order.shuffle):
            raise ValueError(
                f"FullBatchObjective: the data loader shuffles ({type(order).__name__}), but all evaluations need the "
                "same blocks; use shuffle=False, or a list of indices as the sampler"
            )


def iterate(data: Iterable[Any], *, required: bool = False) -> Iterator[Any]:
    """Yield the blocks of the data, without any effect on the global random number generator of the CPU.

    A ``DataLoader`` draws a seed at the start of every iteration. So the generator has two states, which are exchanged:
    one for the data, which starts as a copy, and one for everything else. Lists and ``Blocks`` draw nothing.

    Raises:
        ValueError: a block has no samples, or with ``required`` there is no block.
    """
    draws_nothing = isinstance(data, list | tuple) or hasattr(data, "sizes")
    number = -1
    for number, block in enumerate(data if draws_nothing else _with_own_random_state(data)):
        if len(block[1]) == 0:
            raise ValueError(f"FullBatchObjective: block {number} of the data (counted from 0) has no samples")
        yield block
    if required and number < 0:
        raise ValueError("FullBatchObjective: the data have no blocks; expected at least one (inputs, labels) pair")


def _with_own_random_state(data: Iterable[Any]) -> Iterator[Any]:
    iterator, end, state = None, object(), torch.get_rng_state()
    while True:
        outside = torch.get_rng_state()
        torch.set_rng_state(state)
        try:
            iterator = iter(data) if iterator is None else iterator
            block = next(iterator, end)
        finally:
            state = torch.get_rng_state()
            torch.set_rng_state(outside)
        if block is end:
            return
        yield block


def require_mean_reduction(loss_fn: LossFunction) -> None:
    """Raise ``ValueError`` for a loss of PyTorch with another reduction than a mean, or with class weights."""
    name, options = _name(loss_fn), getattr(loss_fn, "keywords", {})  # of functools.partial
    reduction = options.get("reduction", getattr(loss_fn, "reduction", "mean"))
    if reduction in ("sum", "none"):
        raise ValueError(
            f"FullBatchObjective: {name} has reduction={reduction!r}, but the objective averages the mean losses of "
            "sub-batches; use reduction='mean'"
        )
    if isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss) and loss_fn.weight is not None:
        raise ValueError(
            f"FullBatchObjective: {name} with class weights divides by the sum of the weights of the sub-batch, so it "
            "is not a mean over samples; use a function that returns the mean of its losses with reduction='none'"
        )


class MeanCheck:
    """Tests once, on the first sub-batch of at least two samples, that a loss is a mean over samples.

    The loss of the sub-batch must be the mean of the losses of its halves, weighted by their numbers of samples, up to
    the square root of the precision. All are computed from the same outputs, so that batch statistics do not matter and
    the model is not used. A loss that draws random numbers cannot be tested; one with an attribute
    ``check_mean = False`` is not.
    """

    def __init__(self, loss_fn: LossFunction) -> None:
        self.loss_fn = loss_fn
        self.pending: bool = getattr(loss_fn, "check_mean", True)
        if self.pending:
            require_mean_reduction(loss_fn)

    @torch.no_grad()
    def __call__(self, outputs: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Raise ``ValueError`` if ``loss``, that of the sub-batch, is not the mean of its halves' losses."""
        copies: int = getattr(self.loss_fn, "copies", 1)
        samples = len(labels) // copies
        if samples < 2:
            return
        if loss.numel() != 1:
            raise ValueError(
                f"FullBatchObjective: the loss {_name(self.loss_fn)} returns a tensor of shape {tuple(loss.shape)}; "
                "expected a scalar, the mean over the samples (reduction='mean')"
            )
        if outputs.ndim > 0 and len(outputs) == len(labels):  # otherwise its rows are not the samples
            self._compare_halves(outputs.detach(), labels, loss.detach(), copies, samples)
        self.pending = False

    def _compare_halves(self, outputs: Tensor, labels: Tensor, loss: Tensor, copies: int, samples: int) -> None:
        half = samples // 2
        parts = [slice(None), slice(half * copies), slice(half * copies, None)]
        with preserved(list(self.loss_fn.buffers()) if isinstance(self.loss_fn, nn.Module) else []):
            losses = [self.loss_fn(outputs[part], labels[part]) for part in parts]
        whole, first, second = (float(loss) for loss in losses)
        mean = (half * first + (samples - half) * second) / samples
        precision = max(torch.finfo(t.dtype).eps for t in (outputs, losses[0]) if t.is_floating_point())
        tolerance = precision**0.5 * max(abs(whole), abs(first), abs(second))
        tolerance += 8 * torch.finfo(losses[0].dtype).eps * float(outputs.abs().max())
        is_random = abs(whole - float(loss)) > tolerance
        if abs(whole - mean) > tolerance and not is_random:  # never true of NaN
            raise ValueError(
                f"FullBatchObjective: the loss {_name(self.loss_fn)} is not a mean over samples: it is {whole:.6g} for "
                f"{samples} samples, but the mean of its halves' losses ({first:.6g} and {second:.6g}) is {mean:.6g}. "
                "The result would depend on the sizes of the blocks. Use reduction='mean'; in place of class weights "
                "or ignore_index, which divide by other numbers, divide by the number of samples. A loss with the "
                "attribute check_mean = False is not tested."
            )


def _name(loss_fn: LossFunction) -> str:
    function = getattr(loss_fn, "func", loss_fn)  # of functools.partial
    return getattr(function, "__name__", type(function).__name__)
