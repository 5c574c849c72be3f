"""Which process visits which blocks of a pass, and how far it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fullbatch.runtime.ranks import share
from fullbatch.tensors import add_, clones


@dataclass
class BlockRange:
    """The consecutive blocks ``start`` to ``stop - 1`` of a pass, of which those before ``position`` are visited."""

    start: int
    stop: int
    position: int
    buffers: list[Tensor] = field(default_factory=list)
    """The model's, as they were at ``position``; none before the first block."""

    @property
    def left(self) -> range:
        """The blocks that are not visited yet."""
        return range(self.position, self.stop)


@dataclass
class Shard:
    """What falls to one process."""

    segments: list[BlockRange]
    sums: list[Tensor] = field(default_factory=list)
    """Of the blocks visited; none before the first."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers and tensors."""
        return {"segments": [vars(segment) for segment in self.segments], "sums": self.sums}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Shard":
        """Return what ``state_dict`` returned."""
        return cls([BlockRange(**segment) for segment in state["segments"]], state["sums"])


def shard_blocks(num_blocks: int, size: int) -> list[Shard]:
    """Return consecutive blocks for each of ``size`` processes, each block once; perhaps none for the last."""
    shares = [share(num_blocks, rank, size) for rank in range(size)]
    return [
        Shard([BlockRange(found.start, found.stop, found.start)] if found.stop > found.start else [])
        for found in shares
    ]


def reshard_blocks(parts: Sequence[Shard], size: int) -> list[Shard]:
    """Return the parts for another number of processes.

    The first one takes over all that has been done, the sums added up in the order of ranks; what is left is shared out
    anew, in the order of the blocks.
    """
    if len(parts) == size:
        return list(parts)
    segments = [segment for part in parts for segment in part.segments]
    done = [BlockRange(s.start, s.position, s.position, s.buffers) for s in segments if s.position > s.start]
    left = sorted(block for segment in segments for block in segment.left)
    plan = [Shard(_consecutive(left[share(len(left), rank, size)])) for rank in range(size)]
    plan[0].segments = sorted([*done, *plan[0].segments], key=lambda segment: segment.start)
    plan[0].sums = _added_up([part.sums for part in parts if part.sums])
    return plan


def _consecutive(blocks: Sequence[int]) -> list[BlockRange]:
    segments: list[BlockRange] = []
    for block in blocks:
        if segments and segments[-1].stop == block:
            segments[-1].stop += 1
        else:
            segments.append(BlockRange(block, block + 1, block))
    return segments


def _added_up(sums: Sequence[list[Tensor]]) -> list[Tensor]:
    total = clones(sums[0]) if sums else []
    for others in sums[1:]:
        add_(total, others)
    return total
