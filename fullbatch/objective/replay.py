"""Sub-batches of one shape, whose work is recorded once in a pass and replayed for all that follow.

A replay starts everything that a sub-batch takes - gradient, perturbed gradients, sums - at once, without Python
between the operators, which small sub-batches on a fast device otherwise wait for.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from fullbatch.randomness import untouched_generators, watched
from fullbatch.tensors import copy_
from fullbatch.typing import Block

log = logging.getLogger(__name__)

Result = TypeVar("Result")
WARM_UPS = 2
"""Sub-batches of a shape before one is recorded: the first measures algorithms and whether random numbers are drawn."""


class Recorder(Protocol):
    """Records what a device is told to do."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Do ``work`` and return what does the same again, on the same memory, without running its Python.

        ``RuntimeError`` where that is not possible; then nothing has been done.
        """
        ...


class Replays:
    """Which visits can be replayed, with what records them; one for all the passes of an objective.

    Args:
        recorder: see ``Recorder``.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.possible = recorder, True

    def refuse(self, why: str | BaseException) -> None:
        """Replay nothing from now on, and say why: of an error that ending a recording has led to, what came first."""
        while isinstance(why, BaseException) and why.__context__ is not None:
            why = why.__context__
        self.possible, reason = False, next(iter(str(why).splitlines()), type(why).__name__)
        log.warning("sub-batches cannot be recorded and replayed here, going on without (%s)", reason)


class _Recording(NamedTuple):
    inputs: Tensor
    labels: Tensor
    result: Any
    replay: Callable[[], None]


class Replayed(Generic[Result]):
    """Visits sub-batches as ``visit`` does, from the third of a shape on by replaying a recording.

    A recording repeats one visit with other inputs and labels, so a visit may depend on nothing else that changes in a
    pass; on parameters, learning rates and sums it depends as they are then. So each pass records anew.
    A replay returns what the recorded visit returned: the same tensors, with other values.
    Models that draw random numbers are not replayed: a recording would repeat those of its own sub-batch.
    """

    def __init__(self, visit: Callable[[Block], Result], replays: Replays) -> None:
        self._visit, self._replays = visit, replays
        self._seen: Counter[object] = Counter()
        self._recordings: dict[object, _Recording] = {}

    def __call__(self, block: Block) -> Result:
        """Visit a sub-batch."""
        kind = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in block[:2])
        if kind in self._recordings:
            return self._replay(self._recordings[kind], block)
        self._seen[kind] += 1
        if not self._replays.possible:
            return self._visit(block)
        if self._seen[kind] == 1:
            with watched() as draws:
                result = self._visit(block)
            if draws.found:
                self._replays.refuse("the model draws random numbers")
            return result
        if self._seen[kind] <= WARM_UPS:
            with untouched_generators():
                return self._visit(block)
        return self._record(block, kind)

    def _replay(self, recording: _Recording, block: Block) -> Result:
        copy_([recording.inputs], [block.inputs])
        copy_([recording.labels], [block.labels])
        recording.replay()
        result: Result = recording.result
        return result

    def _record(self, block: Block, kind: object) -> Result:
        fixed = Block(torch.clone(block.inputs), torch.clone(block.labels), block.key)
        results: list[Result] = []

        def work() -> None:
            with untouched_generators():
                results.append(self._visit(fixed))

        try:
            replay = self._replays.recorder.record(work)
        except RuntimeError as error:
            self._replays.refuse(error)
            return self._visit(block)
        self._recordings[kind] = _Recording(fixed.inputs, fixed.labels, results[0], replay)
        return results[0]


def replayed(visit: Callable[[Block], Result], replays: Replays | None) -> Callable[[Block], Result]:
    """Return the ``visit`` of one pass, replayed where ``replays`` are there and possible."""
    return Replayed(visit, replays) if replays is not None and replays.possible else visit
