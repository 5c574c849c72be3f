"""Several sub-batches at once: each on a copy of what its evaluation reads and moves, in a stream of its own.

What small sub-batches leave idle of a fast device others use meanwhile. Sums are added up in the order of the
sub-batches, so that they are the bits of one after the other; running statistics of batch norm compose in that order.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from fullbatch.objective.replay import Replays, replayed
from fullbatch.objective.running_statistics import MovingNorms, other_buffers
from fullbatch.tensors import clones, copy_, preserved
from fullbatch.typing import Block, Tensors

log = logging.getLogger(__name__)

Find = Callable[[Block], list[Tensors]]
"""Evaluates one sub-batch and returns what it adds to each of some sums."""
Add = Callable[[list[Tensors], Block], None]
"""Adds what ``Find`` has returned."""


class Stream(Protocol):
    """A queue of a device beside its main one, which everything else goes through."""

    def start(self, work: Callable[[], None]) -> None:
        """Do ``work`` after all that the main queue has been given so far."""
        ...

    def join(self) -> None:
        """Let what the main queue is given from now on wait for all the work started here."""
        ...


class Replica:
    """Parameters and buffers of ``model`` a second time, which evaluations read and move in place of its own."""

    def __init__(self, model: nn.Module) -> None:
        self._own = list({id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values())
        self._copies = [
            nn.Parameter(copy, own.requires_grad) if isinstance(own, nn.Parameter) else copy
            for own, copy in zip(self._own, clones(self._own), strict=True)
        ]
        copies = {id(own): copy for own, copy in zip(self._own, self._copies, strict=True)}
        self._places = [
            (module, name, tensor, copies[id(tensor)])
            for module in model.modules()
            for name, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Copy the values of the model's own."""
        copy_(self._copies, self._own)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, these are the tensors of the model."""
        for module, name, _, copy in self._places:
            setattr(module, name, copy)
        try:
            yield
        finally:
            for module, name, own, _ in self._places:
                setattr(module, name, own)


class InFlight:
    """Lets the passes of an objective have a sub-batch in each of some streams.

    A model whose other buffers than running statistics of batch norm move (as those of spectral norm do) is evaluated
    one sub-batch after the other, and a line says so.

    Args:
        model: the module; what it computes must depend on its parameters, buffers and inputs alone.
        streams: at least one.
    """

    def __init__(self, model: nn.Module, streams: Sequence[Stream]) -> None:
        self.model, self.streams = model, streams
        self._norms: dict[tuple[object, ...], MovingNorms | None] = {}

    def norms(self, find: Find, block: Block) -> MovingNorms | None:
        """Return what moves in the mode that the model is in, None where others do: tried on a sub-batch, once."""
        mode = tuple((module.training, getattr(module, "momentum", None)) for module in self.model.modules())
        if mode not in self._norms:
            norms = MovingNorms(self.model)
            name = self._moved(other_buffers(self.model, norms), find, block)
            if name is not None:
                log.warning("one sub-batch at a time: the buffer %s moves from each to the next", name)
            self._norms[mode] = norms if name is None else None
        return self._norms[mode]

    def _moved(self, places: Sequence[int], find: Find, block: Block) -> str | None:
        if not places:
            return None
        named = [list(self.model.named_buffers())[place] for place in places]
        before = clones([buffer for _, buffer in named])
        with preserved(list(self.model.buffers())):
            find(block)
            moved = [name for (name, now), was in zip(named, before, strict=True) if not torch.equal(now, was)]
        return moved[0] if moved else None

    def of(self, find: Find, add: Add, replays: Replays | None, *, moves_buffers: bool) -> "Flights":
        """Return the visits of one pass."""
        return Flights(self, find, add, replays, moves_buffers=moves_buffers)


Found = tuple[list[Tensors], tuple[Tensor, Tensor] | None]
"""What a sub-batch adds to the sums, and how it moves running statistics."""


class Flights:
    """Visits sub-batches of one pass and, when the stream of one is needed again or on ``settle``, adds what it found.

    Its recordings, one a stream, are of the evaluations alone.
    """

    def __init__(
        self, in_flight: InFlight, find: Find, add: Add, replays: Replays | None, *, moves_buffers: bool
    ) -> None:
        self._in_flight, self._find, self._add = in_flight, find, add
        self._replays, self._moves_buffers = replays, moves_buffers
        self._visit: Callable[[Block], None] | None = None
        self._lanes: deque[_Lane] = deque()
        self._norms: MovingNorms | None = None
        self._statistics: tuple[Tensor, Tensor] | None = None

    def __call__(self, block: Block) -> None:
        """Visit a sub-batch."""
        if self._visit is None:
            self._visit = self._first_visit(block)
        self._visit(block)

    def settle(self) -> None:
        """Add what all that are in flight find, in order, and move the running statistics of the model's own."""
        for lane in self._lanes:
            self._land(lane)
        if self._norms is not None and self._statistics is not None:
            self._norms.scatter(*self._statistics)
        self._statistics = None

    def _first_visit(self, block: Block) -> Callable[[Block], None]:
        norms = self._in_flight.norms(self._find, block)
        if norms is None:
            return replayed(lambda block: self._add(self._find(block), block), self._replays)
        self._norms = norms if norms.norms and self._moves_buffers else None
        model = self._in_flight.model
        lanes = (_Lane(stream, model, replayed(self._evaluate, self._replays)) for stream in self._in_flight.streams)
        self._lanes.extend(lanes)
        return self._take_off

    def _take_off(self, block: Block) -> None:
        if not any(lane.busy for lane in self._lanes):
            self._begin()
        lane = self._lanes.popleft()
        self._land(lane)
        lane.start(block)
        self._lanes.append(lane)

    def _begin(self) -> None:
        for lane in self._lanes:
            lane.update()
        self._statistics = None if self._norms is None else self._norms.gathered()

    def _evaluate(self, block: Block) -> Found:
        if self._norms is None:
            return self._find(block), None
        self._norms.reset()
        return self._find(block), self._norms.gathered()

    def _land(self, lane: "_Lane") -> None:
        if not lane.busy:
            return
        block, (found, moved) = lane.land()
        self._add(found, block)
        if self._norms is not None and self._statistics is not None and moved is not None:
            self._norms.move_(*self._statistics, *moved)


class _Lane:
    """A stream with a replica, and the sub-batch that it is busy with."""

    def __init__(self, stream: Stream, model: nn.Module, evaluate: Callable[[Block], Found]) -> None:
        self._stream, self._model, self._evaluate = stream, model, evaluate
        self._replica: Replica | None = None
        self._block: Block | None = None  # kept as long as it is read: the main queue could use its memory again
        self._found: list[Found] = []

    @property
    def busy(self) -> bool:
        return self._block is not None

    def update(self) -> None:
        if self._replica is not None:
            self._replica.update()

    def start(self, block: Block) -> None:
        replica = self._replica = self._replica or Replica(self._model)
        self._block = block

        def work() -> None:
            with replica.in_use():
                self._found.append(self._evaluate(block))

        self._stream.start(work)

    def land(self) -> tuple[Block, Found]:
        assert self._block is not None
        self._stream.join()
        block, self._block = self._block, None
        return block, self._found.pop()
