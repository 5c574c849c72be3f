"""Who visits which blocks: each block once, whatever has been done by however many processes before."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fullbatch.training.block_shards import BlockRange, Shard, reshard_blocks, shard_blocks


def blocks_left(parts: list[Shard]) -> list[int]:
    return [block for part in parts for segment in part.ranges for block in segment.remaining]


@given(st.integers(1, 30), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_each_block_is_visited_once_by_changing_numbers_of_processes(
    num_blocks: int, sizes: list[int], data: st.DataObject
) -> None:
    """The sum of a visit is its block's number, so the sums of all must be that of all numbers."""
    visited: list[int] = []
    parts = shard_blocks(num_blocks, sizes[0])
    for size in sizes:
        parts = reshard_blocks(parts, size)
        assert len(parts) == size
        assert sorted(visited + blocks_left(parts)) == list(range(num_blocks))
        for part in parts:
            total = int(part.sums[0]) if part.sums else 0
            for segment in part.ranges:
                for block in list(segment.remaining)[: data.draw(st.integers(0, num_blocks))]:
                    visited.append(block)
                    segment.position += 1
                    total += block
            part.sums = [torch.tensor(float(total))]
    assert sum(float(part.sums[0]) for part in parts if part.sums) == sum(visited)


def test_the_same_number_of_processes_goes_on_where_each_was() -> None:
    parts = [Shard([BlockRange(0, 3, 2)], [torch.ones(1)]), Shard([BlockRange(3, 5, 3)])]
    assert reshard_blocks(parts, 2) == parts


def test_a_pass_begins_with_its_first_block_on_the_first_process() -> None:
    """Running statistics start there from what they are, elsewhere from zero."""
    parts = [Shard([BlockRange(0, 4, 0)]), Shard([BlockRange(4, 8, 6)], [torch.ones(1)])]
    first = reshard_blocks(parts, 3)[0]
    assert [(segment.start, segment.stop, segment.position) for segment in first.ranges] == [(0, 2, 0), (4, 6, 6)]


def test_parts_survive_a_file() -> None:
    part = Shard([BlockRange(0, 4, 2, [torch.ones(2)])], [torch.zeros(3)])
    again = Shard.from_state_dict(part.state_dict())
    assert vars(again.ranges[0]).keys() == vars(part.ranges[0]).keys()
    assert torch.equal(again.ranges[0].buffers[0], torch.ones(2))
