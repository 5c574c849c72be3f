"""Type aliases and protocols that the whole package shares."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

Tensors: TypeAlias = Sequence[Tensor]
LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(outputs [n, C], labels [n]) -> mean loss of the sub-batch, a scalar."""


class Block(NamedTuple):
    """A block of samples on the device.

    ``inputs`` [n, C, H, W], ``labels`` [n]; ``key`` seeds the random numbers that the model draws on this block
    (dropout masks), so that a repeated evaluation of the block repeats them.
    """

    inputs: Tensor
    labels: Tensor
    key: int


class Blocks(Protocol):
    """The samples of one evaluation, block by block; each iteration yields the same blocks."""

    def __iter__(self) -> Iterator[Block]: ...

    @property
    def sizes(self) -> Sequence[int]:
        """The number of samples of each block."""
        ...
