"""Probes measure a run without changing it: which are due, what they observe, where their results go."""

import logging
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

log = logging.getLogger(__name__)

Note = Callable[[int, str, Sequence[str], Sequence[float]], None]
"""(step, quantity, names, values): records quantities with several values per step."""


@dataclass(frozen=True)
class Observation:
    """The state after a step and the objective of that step."""

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
    """Whether the step had several updates."""
    memory: dict[str, Any]
    """What probes store for the next observation: tensors and plain containers, part of checkpoints."""
    note: Note


class Probe(Protocol):
    """Measures. Leaves parameters, buffers, modes and random number generators bitwise unchanged."""

    @property
    def columns(self) -> dict[str, str]:
        """The names of the numbers that a call may return, with their descriptions."""
        ...

    def __call__(self, observation: Observation) -> Row:
        """Return numbers by name; what cannot be measured is missing or NaN."""
        ...


class Observe(Protocol):
    """Prepares an observation."""

    def __call__(self, state: TrainState, note: Note) -> Observation:
        """Return the observation of the last step of ``state``."""
        ...


@dataclass
class ProbeSchedule:
    """The probes of a run and when they are due.

    Args:
        observe: prepares the observation.
        scheduled: pairs (n, probe); the probe is due at multiples of n.
        note: records quantities with several values per step.
    """

    observe: Observe
    scheduled: Sequence[tuple[int, Probe]]
    note: Note = field(default=lambda *_: None)

    def __call__(self, state: TrainState, *, last: bool) -> Row:
        """Run the probes that are due after the last step of ``state``: at multiples of n and at the ``last`` step.

        The model is in training mode for them, and the random number generators are restored afterwards. A
        ``ValueError`` of a probe is a warning, and its columns are empty in this row: the run goes on.
        """
        due = [probe for every, probe in self.scheduled if last or state.step % every == 0]
        if not due:
            return {}
        start, row = time.perf_counter(), Row()
        with mode(state.model, training=True), preserved_rng(device_of(state.model)):
            observation = self.observe(state, self.note)
            for probe in due:
                try:
                    numbers = {name: value for name, value in probe(observation).items() if not math.isnan(value)}
                    if taken := row.keys() & numbers.keys():
                        raise ValueError(f"another probe returns a number named {min(taken)}, too")
                except ValueError as error:
                    log.warning("step %d: %s: not measured: %s", state.step, type(probe).__name__, error)
                else:
                    row |= numbers
        return {**row, "analysis_time": time.perf_counter() - start}

    @property
    def columns(self) -> dict[str, str]:
        """The description of each column."""
        return {name: text for _, probe in self.scheduled for name, text in probe.columns.items()}
