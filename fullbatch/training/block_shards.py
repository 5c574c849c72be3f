"""The blocks of a pass that each process visits, and how many of them it has visited."""

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
    """The model's buffers at ``position``; empty before the first block."""

    @property
    def remaining(self) -> range:
        """The blocks that are not visited yet."""
        return range(self.position, self.stop)


@dataclass
class Shard:
    """The blocks of one process."""

    ranges: list[BlockRange]
    sums: list[Tensor] = field(default_factory=list)
    """Sums over the visited blocks; empty before the first block."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers and tensors."""
        return {"segments": [vars(block_range) for block_range in self.ranges], "sums": self.sums}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Shard":
        """Return the shard of a ``state_dict``."""
        return cls([BlockRange(**block_range) for block_range in state["segments"]], state["sums"])


def shard_blocks(num_blocks: int, size: int) -> list[Shard]:
    """Return consecutive blocks for each of ``size`` processes, each block once; the last shards may be empty."""
    shares = [share(num_blocks, rank, size) for rank in range(size)]
    return [Shard([BlockRange(s.start, s.stop, s.start)] if s.stop > s.start else []) for s in shares]


def reshard_blocks(shards: Sequence[Shard], size: int) -> list[Shard]:
    """Return the shards for another number of processes.

    The first process takes over all visited blocks, with the sums added up in the order of ranks. The remaining blocks
    are distributed anew, in order.
    """
    if len(shards) == size:
        return list(shards)
    ranges = [block_range for shard in shards for block_range in shard.ranges]
    visited = [BlockRange(r.start, r.position, r.position, r.buffers) for r in ranges if r.position > r.start]
    remaining = sorted(block for block_range in ranges for block in block_range.remaining)
    resharded = [Shard(_consecutive(remaining[share(len(remaining), rank, size)])) for rank in range(size)]
    resharded[0].ranges = sorted([*visited, *resharded[0].ranges], key=lambda block_range: block_range.start)
    first, *others = [shard.sums for shard in shards if shard.sums] or [[]]
    resharded[0].sums = clones(first)
    for sums in others:
        add_(resharded[0].sums, sums)
    return resharded


def covers(shards: Sequence[Shard], num_blocks: int) -> bool:
    """Return whether the ranges of the shards have each of ``num_blocks`` blocks once."""
    ranges = sorted((r.start, r.position, r.stop) for shard in shards for r in shard.ranges)
    ends = [0, *(stop for _, _, stop in ranges)]
    return ends[-1] == num_blocks and all(
        start == end and start <= position <= stop for (start, position, stop), end in zip(ranges, ends, strict=False)
    )


def _consecutive(blocks: Sequence[int]) -> list[BlockRange]:
    ranges: list[BlockRange] = []
    for block in blocks:
        if ranges and ranges[-1].stop == block:
            ranges[-1].stop += 1
        else:
            ranges.append(BlockRange(block, block + 1, block))
    return ranges
