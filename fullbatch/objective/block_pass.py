"""How an evaluation goes through the data: as a rule, one sub-batch after the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fullbatch.typing import Block, Tensors


@dataclass(frozen=True)
class Pass:
    """One pass over the data, ready to go."""

    model: nn.Module
    data: Any
    """The blocks; those that are shared out or continued can be counted and cut."""
    split: Callable[[Any], Iterator[list[Block]]]
    """Yields the sub-batches of each block of (a part of) the data."""
    visit: Callable[[Block], None]
    """Evaluates one sub-batch and adds to ``sums``, at the latest when the pass is settled."""
    sums: list[Tensor]
    """What a pass is for: zero before it; sums of all sub-batches after it."""
    moves_buffers: bool
    """Whether the buffers that the pass leaves behind are wanted; else somebody puts the old ones back."""
    settle: Callable[[], None] = lambda: None
    """Brings ``sums`` and buffers up to all that has been visited, before somebody else looks at them or sets them."""


Passes = Callable[[Pass], None]
"""Visits every sub-batch once and leaves the sums over all of them in ``sums``."""


def straight(all_reduce: Callable[[Tensors], None] | None = None) -> Passes:
    """Return what visits all that the data yield, here, in order; then ``all_reduce`` adds up what processes have."""

    def go(run: Pass) -> None:
        for sub_batches in run.split(run.data):
            for block in sub_batches:
                run.visit(block)
        run.settle()
        if all_reduce is not None:
            all_reduce(run.sums)

    return go
