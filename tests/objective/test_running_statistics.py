"""Running statistics of pieces compose to those of one process with all sub-batches."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from fullbatch.models.layers import SequentialGhostNorm
from fullbatch.objective.running_statistics import RunningStatistics
from fullbatch.tensors import clones, copy_


def model(momentum: float | None) -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.BatchNorm2d(2, momentum=momentum), nn.Conv2d(2, 3, 1), SequentialGhostNorm(3, momentum=momentum)]
    some = nn.Sequential(*layers, nn.BatchNorm2d(3, track_running_stats=False)).double()
    some(torch.randn(40, 2, 3, 3, dtype=torch.float64))  # not zero
    return some


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("cuts", [[], [3], [1, 2, 7], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_pieces_compose_to_the_whole(momentum: float | None, cuts: list[int]) -> None:
    whole = model(momentum)
    shared = copy.deepcopy(whole)
    sub_batches = [torch.randn(4 + 9 * k, 2, 3, 3, dtype=torch.float64) for k in range(9)]
    for inputs in sub_batches:
        whole(inputs)
    statistics = RunningStatistics(shared)
    start = clones(statistics.buffers)
    edges = [0, *cuts, len(sub_batches)]
    table = torch.zeros(())
    for row, (begin, end) in enumerate(pairwise(edges)):
        copy_(statistics.buffers, start)
        if begin > 0:
            statistics.reset()
        for inputs in sub_batches[begin:end]:
            shared(inputs)
        table = table + statistics.table([(row, clones(statistics.buffers))], len(edges) - 1, start)
    copy_(statistics.buffers, start)
    statistics.compose_(table)
    for (name, ours), theirs in zip(shared.named_buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14, msg=name)


def test_a_piece_without_sub_batches_changes_nothing() -> None:
    for momentum in (0.1, None):
        some = model(momentum)
        statistics = RunningStatistics(some)
        start = clones(statistics.buffers)
        nothing = [torch.zeros_like(buffer) for buffer in start]
        statistics.compose_(statistics.table([(0, start), (1, nothing)], 2, start))
        assert all(torch.equal(one, other) for one, other in zip(statistics.buffers, start, strict=True))


def test_frozen_statistics_are_used_and_must_not_change() -> None:
    some = model(0.1)
    some[0].eval()
    before = clones(list(some[0].buffers()))
    statistics = RunningStatistics(some)
    statistics.reset()
    assert all(torch.equal(one, other) for one, other in zip(some[0].buffers(), before, strict=True))
    assert not any(buffer.any() for buffer in some[2].buffers())
    start = clones(statistics.buffers)
    some[0].train()(torch.randn(5, 2, 3, 3, dtype=torch.float64))
    table = statistics.table([(0, start), (1, clones(statistics.buffers))], 2, start)
    with pytest.raises(ValueError, match=r"the buffer 0\.running_mean changes from block to block"):
        statistics.compose_(table)


def test_a_buffer_that_does_not_compose_is_named() -> None:
    some = nn.Sequential(nn.BatchNorm1d(2), nn.InstanceNorm1d(2, track_running_stats=True)).double()
    statistics = RunningStatistics(some)
    start = clones(statistics.buffers)
    some[1](torch.randn(3, 2, 5, dtype=torch.float64))
    table = statistics.table([(0, start), (1, clones(statistics.buffers))], 2, start)
    with pytest.raises(ValueError, match=r"the buffer 1\.running_mean changes from block to block"):
        statistics.compose_(table)
