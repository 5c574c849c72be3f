"""Passes over the blocks of an update: shared by processes, and saved and continued in the middle of a step."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from fullbatch.objective.block_pass import Pass
from fullbatch.objective.running_statistics import RunningStatistics
from fullbatch.runtime.process_group import ALONE, Group
from fullbatch.runtime.stop_requests import StopRequest
from fullbatch.tensors import clones, copy_
from fullbatch.training.block_shards import BlockRange, Shard, reshard_blocks, shard_blocks


class PausedError(Exception):
    """Somebody wants the run to stop, and what is known inside the step is saved."""


class RequestSource(Protocol):
    """As ``fullbatch.runtime.stop_requests.StopRequests``."""

    def noticed(self) -> bool:
        """Return whether there is a wish to agree on."""
        ...

    def agree(self) -> StopRequest:
        """Return what all wish for. Collective."""
        ...


class NoRequests:
    """Nobody wants anything."""

    def noticed(self) -> bool:
        """Return False."""
        return False

    def agree(self) -> StopRequest:
        """Return that there is none."""
        return StopRequest.NONE


@dataclass
class StepProgress:
    """What is known inside a step: the passes that are through, and the one that goes on.

    Args:
        rate: the learning rate, which regularized gradients depend on.
        save: (what is known inside the step) -> None; called by all processes, whose first alone is told.
        known: what an interrupted attempt at the same step knew.
    """

    rate: float
    save: Callable[[dict[str, Any]], None]
    known: dict[str, Any] | None = None
    finished: list[dict[str, list[Tensor]]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def finish(self, run: Pass) -> None:
        """Take notice of the sums and the buffers after a pass."""
        self.finished.append({"sums": clones(run.sums), "buffers": clones(list(run.model.buffers()))})

    def replay(self, run: Pass) -> bool:
        """Go through a pass that an earlier attempt has finished; return whether it has."""
        number = len(self.finished)
        if self.known is None or number >= len(self.known["finished"]):
            return False
        done = self.known["finished"][number]
        copy_(run.sums, done["sums"])
        copy_(list(run.model.buffers()), done["buffers"])
        self.finish(run)
        return True

    def parts(self, run: Pass, size: int) -> list[Shard]:
        """Return who visits what of the next pass, and what has been visited."""
        known, self.known = self.known, None  # a pass that is not through is the last that is known
        if known is None:
            return shard_blocks(len(run.data), size)
        return reshard_blocks([Shard.of(part) for part in known["parts"]], size)

    def state_dict(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """Return plain containers and tensors."""
        seconds = time.perf_counter() - self.started
        return {"rate": self.rate, "finished": self.finished, "parts": parts, "seconds": seconds}


class DistributedPass:
    """Implements ``fullbatch.objective.block_pass.Passes`` for the blocks of an update, which can be counted and cut.

    1. Each process visits consecutive blocks of its own; an all-reduce adds the sums up, once.
    2. Running statistics of batch norm become those that one process would have found.
    3. Inside a full-batch step (``inside_step``), wishes are looked at after each block. A save has the sums and the
       position of every process; the step continues from it bitwise, on as many processes, and else within rounding.

    Args:
        group: the processes.
        wishes: what signals and the clock want.
    """

    def __init__(self, group: Group = ALONE, wishes: RequestSource | None = None) -> None:
        self.group, self.wishes = group, wishes or NoRequests()
        self._journal: StepProgress | None = None

    @contextmanager
    def inside_step(
        self, rate: float, known: dict[str, Any] | None, save: Callable[[dict[str, Any]], None]
    ) -> Iterator[None]:
        """Make passes inside those of one step, which may be saved and continued; see ``StepProgress``.

        Raises ``PausedError`` from within a pass after a save, where the run is to stop.
        """
        if known is not None and known["rate"] != rate:
            known = None  # of a schedule that has changed since: regularized gradients are others
        self._journal = StepProgress(rate, save, known)
        self._journal.started -= known["seconds"] if known else 0.0
        try:
            yield
        finally:
            self._journal = None

    def __call__(self, run: Pass) -> None:
        """Visit every block once and leave the sums over all of them in ``run.sums``."""
        journal = self._journal
        if journal is not None and journal.replay(run):
            return
        parts = shard_blocks(len(run.data), self.group.size) if journal is None else journal.parts(run, self.group.size)
        shared = run.moves_buffers and sum(len(part.segments) for part in parts) > 1
        statistics = RunningStatistics(run.model) if shared and any(True for _ in run.model.buffers()) else None
        start = clones(statistics.buffers) if statistics else []
        mine = parts[self.group.rank]
        if mine.sums:
            copy_(run.sums, mine.sums)
        for segment in mine.segments:
            self._visit(run, segment, statistics, mine)
        while journal is not None and self._meet(run, mine) is not StopRequest.NONE:
            pass
        self._add_up(run, parts, statistics, start)
        if journal is not None:
            journal.finish(run)

    def _visit(self, run: Pass, segment: BlockRange, statistics: RunningStatistics | None, part: Shard) -> None:
        buffers = list(run.model.buffers())
        if segment.buffers:
            copy_(buffers, segment.buffers)
        elif statistics is not None and segment.start > 0:
            statistics.reset()
        for sub_batches in run.split(run.data[segment.position : segment.stop]) if segment.left else ():
            for block in sub_batches:
                run.visit(block)
            segment.position += 1
            if self._journal is not None and self.wishes.noticed():
                run.settle()
                segment.buffers = clones(buffers)
                self._meet(run, part)
        run.settle()
        segment.buffers = clones(buffers)

    def _meet(self, run: Pass, part: Shard) -> StopRequest:
        """Agree with the other processes, each somewhere in its part, and do what is wished for. Collective."""
        assert self._journal is not None
        wish = self.wishes.agree()
        if wish is not StopRequest.NONE:
            part.sums = clones(run.sums)
            parts = self.group.gather(_on_cpu(part.state_dict()))
            self._journal.save(self._journal.state_dict(parts or []))
        if wish is StopRequest.STOP:
            raise PausedError
        return wish

    def _add_up(self, run: Pass, parts: list[Shard], statistics: RunningStatistics | None, start: list[Tensor]) -> None:
        if statistics is None:
            self.group.all_reduce(run.sums)
            return
        order = sorted(segment.start for part in parts for segment in part.segments)
        rows = [(order.index(segment.start), segment.buffers) for segment in parts[self.group.rank].segments]
        table = statistics.table(rows, len(order), start)
        self.group.all_reduce([*run.sums, table])
        statistics.compose_(table)


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [moved(entry) for entry in value]
        return value.detach().cpu().clone() if isinstance(value, Tensor) else copy.copy(value)

    moved_state: dict[str, Any] = moved(state)
    return moved_state
