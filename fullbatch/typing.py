"""The vocabulary of the package: aliases and small protocols, nothing that runs."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

Tensors: TypeAlias = Sequence[Tensor]
LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(outputs [B, C], labels [B]) -> mean loss of the sub-batch, a scalar."""


class Block(NamedTuple):
    """Some samples on the device, with the key of everything random that happens to them.

    ``inputs`` [n, C, H, W], ``labels`` [n]; ``key`` is an integer that seeds the random numbers a model draws on this
    block (dropout masks), so that a repeated evaluation of the block repeats them.
    """

    inputs: Tensor
    labels: Tensor
    key: int


class Blocks(Protocol):
    """The samples of one evaluation, block by block; iterating again yields the same blocks again."""

    def __iter__(self) -> Iterator[Block]: ...

    @property
    def sizes(self) -> Sequence[int]:
        """The number of samples of each block."""
        ...
