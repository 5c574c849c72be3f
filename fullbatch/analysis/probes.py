"""Probes look at a run without changing it: which are due, what they may see, where their findings go."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.randomness import preserved_rng
from fullbatch.tensors import device_of, mode
from fullbatch.training.state import Row, TrainState

Note = Callable[[int, str, Sequence[str], Sequence[float]], None]
"""(step, quantity, names, values): keeps what is more than a number a step."""


@dataclass(frozen=True)
class Observation:
    """What a probe sees: the state after a step, and the objective of that step."""

    step: int
    """The number of steps taken."""
    model: nn.Module
    """In training mode."""
    optimizer: Optimizer
    objective: FullBatchObjective
    """L on all samples of the step, without regularizer and clip."""
    batches: Callable[[], Iterable[FullBatchObjective]]
    """L on the samples of each update of the step."""
    stochastic: bool
    """Whether the step was of several updates."""
    memory: dict[str, Any]
    """What probes remember until the next time: tensors and plain containers, part of checkpoints."""
    note: Note


class Probe(Protocol):
    """Measures. Parameters, buffers, modes and random number generators stay as they are, bitwise."""

    @property
    def columns(self) -> dict[str, str]:
        """The numbers that a call may return, with what they are."""
        ...

    def __call__(self, seen: Observation) -> Row:
        """Return numbers by their names; what cannot be measured now is left out, or NaN."""
        ...


class Observe(Protocol):
    """Prepares an observation."""

    def __call__(self, state: TrainState, note: Note) -> Observation:
        """Return what there is to see after the last step of ``state``."""
        ...


@dataclass
class Probes:
    """The probes of a run; see ``__call__``.

    Args:
        observe: prepares what they see.
        scheduled: probes, each with the number n for multiples of which it is due.
        note: keeps what is more than a number.
    """

    observe: Observe
    scheduled: Sequence[tuple[int, Probe]]
    note: Note = field(default=lambda *_: None)

    def __call__(self, state: TrainState, *, last: bool) -> Row:
        """Run the probes that are due after the last step of ``state``: at multiples of n, and at the ``last`` step.

        They are given the model in training mode, and random number generators come back whatever they do.
        """
        due = [probe for every, probe in self.scheduled if last or state.step % every == 0]
        if not due:
            return {}
        start, row = time.perf_counter(), Row()
        with mode(state.model, training=True), preserved_rng(device_of(state.model)):
            seen = self.observe(state, self.note)
            for probe in due:
                row |= {name: value for name, value in probe(seen).items() if not math.isnan(value)}
        return {**row, "analysis_time": time.perf_counter() - start}

    @property
    def columns(self) -> dict[str, str]:
        """What each column holds."""
        return {name: text for _, probe in self.scheduled for name, text in probe.columns.items()}
