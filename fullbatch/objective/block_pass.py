"""Passes over the data: how the sub-batches of one evaluation are visited."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from fullbatch.typing import Block, Tensors


@dataclass(frozen=True)
class Pass:
    """One pass over the data: the function to evaluate on every sub-batch, and the sums to accumulate.

    Args:
        model: the module under evaluation.
        data: the blocks. A pass that is distributed or resumed needs blocks with a length that can be sliced.
        split: yields the sub-batches of each block of (a slice of) the data.
        evaluate: evaluates one sub-batch.
        add: adds the result of ``evaluate`` to ``sums``.
        sums: tensors that start at zero and hold the sums over all sub-batches afterwards.
        updates_buffers: whether the buffers that the pass leaves are kept; otherwise the caller restores them.
    """

    model: nn.Module
    data: Any
    split: Callable[[Any], Iterator[list[Block]]]
    evaluate: Callable[[Block], Any]
    add: Callable[[Any, Block], None]
    sums: list[Tensor]
    updates_buffers: bool


class BlockPass(Protocol):
    """Runs passes: evaluates every sub-batch once and leaves the sums over all of them in ``Pass.sums``."""

    def __call__(self, run: Pass) -> None:
        """Run one pass."""
        ...

    def reduce(self, tensors: Tensors) -> None:
        """Add tensors up over the processes that share the data, in place."""
        ...


class SequentialPass:
    """Visits the blocks one after the other, in this process.

    Args:
        all_reduce: adds a list of tensors up over all processes in place, where each process has its own part of the
            data; called once per pass. None for a single process.
    """

    def __init__(self, all_reduce: Callable[[Tensors], None] | None = None) -> None:
        self._all_reduce = all_reduce
        self.has_all_data = all_reduce is None
        """Whether this process has all the data, so that it must have some."""

    def __call__(self, run: Pass) -> None:
        """Run one pass."""
        for sub_batches in run.split(run.data):
            for block in sub_batches:
                run.add(run.evaluate(block), block)
        self.reduce(run.sums)

    def reduce(self, tensors: Tensors) -> None:
        """Add tensors up over the processes, in place."""
        if self._all_reduce is not None:
            self._all_reduce(tensors)
