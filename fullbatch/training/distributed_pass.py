"""Passes over the blocks of an update: distributed over processes, and saved and resumed inside a step."""

import io
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fullbatch.objective.block_pass import Pass
from fullbatch.objective.running_statistics import RunningStatistics
from fullbatch.runtime.process_group import ALONE, Group
from fullbatch.runtime.stop_requests import StopRequest
from fullbatch.tensors import clones, copy_
from fullbatch.training.block_shards import Shard, covers, reshard_blocks, shard_blocks
from fullbatch.typing import Tensors

log = logging.getLogger(__name__)


class PausedError(Exception):
    """The run was asked to stop inside a step, and its progress is saved."""


class Requests(Protocol):
    """Requests to save or to stop; see ``fullbatch.runtime.stop_requests.StopRequests``."""

    def pending(self) -> bool:
        """Return whether the processes should synchronize on a request."""
        ...

    def synchronize(self) -> StopRequest:
        """Return the most urgent request of all processes. Collective."""
        ...


class NoRequests:
    """Never asks for anything."""

    def pending(self) -> bool:
        """Return False."""
        return False

    def synchronize(self) -> StopRequest:
        """Return ``StopRequest.NONE``."""
        return StopRequest.NONE


@dataclass
class StepProgress:
    """The progress inside a step: the finished passes, and the shards of the current one.

    Args:
        rate: the learning rate, on which regularized gradients depend.
        save: writes a checkpoint with the progress inside the step; called by all processes with the shards of all of
            them on the first process, and an empty list on the others.
        resumed: the progress of an interrupted attempt at the same step.
    """

    rate: float
    save: Callable[[dict[str, Any]], None]
    resumed: dict[str, Any] | None = None
    finished: list[dict[str, list[Tensor]]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def finish(self, run: Pass) -> None:
        """Record sums and buffers after a pass."""
        self.finished.append({"sums": clones(run.sums), "buffers": clones(list(run.model.buffers()))})

    def replay(self, run: Pass) -> bool:
        """Set sums and buffers to those of a pass that an earlier attempt has finished; return whether it has."""
        number = len(self.finished)
        if self.resumed is None or number >= len(self.resumed["finished"]):
            return False
        stored = self.resumed["finished"][number]
        if not (_fit(stored["sums"], run.sums) and _fit(stored["buffers"], list(run.model.buffers()))):
            self._drop()
            return False
        copy_(run.sums, stored["sums"])
        copy_(list(run.model.buffers()), stored["buffers"])
        self.finish(run)
        return True

    def shards(self, run: Pass, size: int) -> list[Shard]:
        """Return the shards of the next pass for ``size`` processes, with the blocks visited so far."""
        resumed, self.resumed = self.resumed, None  # an unfinished pass is the last one of the attempt
        shards = [Shard.from_state_dict(shard) for shard in resumed["parts"]] if resumed else []
        if resumed is not None and not (covers(shards, len(run.data)) and all(_fits(shard, run) for shard in shards)):
            self._drop()
            shards = []
        return reshard_blocks(shards, size) if shards else shard_blocks(len(run.data), size)

    def _drop(self) -> None:
        """Compute the rest of the step anew, which gives the same numbers."""
        self.resumed = None
        log.warning("the stored progress inside the step does not fit or is not finite; it is computed again")

    def state_dict(self, shards: list[dict[str, Any]]) -> dict[str, Any]:
        """Return plain containers and tensors."""
        seconds = time.perf_counter() - self.started
        return {"rate": self.rate, "finished": self.finished, "parts": shards, "seconds": seconds}


class DistributedPass:
    """Implements ``fullbatch.objective.block_pass.BlockPass`` for the blocks of an update.

    1. Each process visits consecutive blocks of its own; one all-reduce adds up the sums.
    2. Running statistics of batch norm become those that one process would have computed.
    3. Inside ``step_progress``, requests are checked after each block. A save holds the sums and the position of every
       process. The step continues from it bitwise on as many processes, and within rounding on any other number.

    Args:
        group: the processes.
        requests: requests to save or to stop, from signals and the clock.
    """

    def __init__(self, group: Group = ALONE, requests: Requests | None = None) -> None:
        self.group, self.requests = group, requests or NoRequests()
        self._progress: StepProgress | None = None

    @contextmanager
    def step_progress(
        self, rate: float, resumed: dict[str, Any] | None, save: Callable[[dict[str, Any]], None]
    ) -> Iterator[None]:
        """Make passes inside those of one step, which can be saved and resumed; see ``StepProgress``.

        Raises ``PausedError`` from within a pass after a save, where the run is to stop.
        """
        if resumed is not None and resumed["rate"] != rate:
            resumed = None  # the schedule has changed since, and with it regularized gradients
        self._progress = StepProgress(rate, save, resumed)
        self._progress.started -= resumed["seconds"] if resumed else 0.0
        try:
            yield
        finally:
            self._progress = None

    def reduce(self, tensors: Tensors) -> None:
        """Add tensors up over the processes, in place."""
        self.group.all_reduce(tensors)

    def __call__(self, run: Pass) -> None:
        """Visit every block once and leave the sums over all of them in ``run.sums``."""
        progress, size = self._progress, self.group.size
        if progress is not None and progress.replay(run):
            return
        shards = shard_blocks(len(run.data), size) if progress is None else progress.shards(run, size)
        shared = run.updates_buffers and sum(len(shard.ranges) for shard in shards) > 1
        buffers = list(run.model.buffers())
        statistics = RunningStatistics(run.model) if shared and buffers else None
        start = clones(buffers) if statistics else []
        local = shards[self.group.rank]
        if local.sums:
            copy_(run.sums, local.sums)
        for block_range in local.ranges:
            if block_range.buffers:
                copy_(buffers, block_range.buffers)
            elif statistics is not None and block_range.start > 0:
                statistics.reset()
            remaining = run.data[block_range.position : block_range.stop] if block_range.remaining else ()
            for sub_batches in run.split(remaining):
                for block in sub_batches:
                    run.add(run.evaluate(block), block)
                block_range.position += 1
                if progress is not None and self.requests.pending():
                    block_range.buffers = clones(buffers)
                    self._synchronize(run, local, progress)
            block_range.buffers = clones(buffers)
        while progress is not None and self._synchronize(run, local, progress) is not StopRequest.NONE:
            pass
        self._reduce(run, shards, statistics, start)
        if progress is not None:
            progress.finish(run)

    def _synchronize(self, run: Pass, shard: Shard, progress: StepProgress) -> StopRequest:
        """Agree on a request with the other processes, each somewhere in its shard, and act on it. Collective."""
        request = self.requests.synchronize()
        if request is not StopRequest.NONE:
            shard.sums = clones(run.sums)
            content = io.BytesIO()
            torch.save(shard.state_dict(), content)
            shards = [io.BytesIO(one) for one in self.group.gather(content.getvalue()) or ()]
            states = [torch.load(one, map_location="cpu", weights_only=True) for one in shards]
            progress.save(progress.state_dict(states))
        if request is StopRequest.STOP:
            raise PausedError
        return request

    def _reduce(
        self, run: Pass, shards: list[Shard], statistics: RunningStatistics | None, start: list[Tensor]
    ) -> None:
        if statistics is None:
            self.group.all_reduce(run.sums)
            return
        order = sorted(block_range.start for shard in shards for block_range in shard.ranges)
        rows = [(order.index(r.start), r.buffers) for r in shards[self.group.rank].ranges]
        table = statistics.table(rows, len(order), start)
        self.group.all_reduce([*run.sums, table])
        statistics.compose_(table)


def _fit(stored: Tensors, own: Tensors) -> bool:
    """Return whether stored tensors are finite and shaped like ``own``."""
    return [tensor.shape for tensor in stored] == [tensor.shape for tensor in own] and all(
        not tensor.is_complex() and bool(tensor.isfinite().all()) for tensor in stored
    )


def _fits(shard: Shard, run: Pass) -> bool:
    """Return whether a stored shard has what a pass needs to continue after the blocks that it has visited."""
    visited = [r for r in shard.ranges if r.position > r.start]
    buffers = list(run.model.buffers())
    return all(_fit(r.buffers, buffers) for r in visited) and (not visited or _fit(shard.sums, run.sums))
