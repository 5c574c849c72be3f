"""The value of the objective at points of a surface, and the surface as a whole."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fullbatch.landscape.directions import Directions, floating_buffers
from fullbatch.landscape.grid import Grid, Point
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.tensors import clones, copy_, mode, parameters_at, scaled_sum, trainable
from fullbatch.training.validation import recalibrated_batchnorm


class Value(NamedTuple):
    """What is computed at a point."""

    loss: float
    """L, the training loss."""
    accuracy: float
    """Share of the samples whose largest output is the label's."""
    full_loss: float
    """L + weight_decay/2 ||t||^2 + the regularizer's penalty; nan where it was not asked for."""


@dataclass(frozen=True)
class Surface:
    """A surface, whole or in part: arrays of the shape of the grid, nan where nothing is computed."""

    grid: Grid
    loss: np.ndarray
    accuracy: np.ndarray
    full_loss: np.ndarray
    labels: tuple[str, ...] = ("x", "y")
    path: tuple[Point, ...] = ()
    """Points to be marked."""
    connected: bool = False
    """Whether the path is a trajectory."""

    def quantities(self) -> dict[str, np.ndarray]:
        """Return the arrays by their names; ``full_loss`` only where it was computed."""
        arrays = {name: getattr(self, name) for name in Value._fields}
        return {name: array for name, array in arrays.items() if name == "loss" or not np.isnan(array).all()}


def surface_of(grid: Grid, values: dict[Point, Value], directions: Directions) -> Surface:
    """Arrange the values on the grid."""
    unknown = Value(*[np.nan] * len(Value._fields))
    table = np.array([values.get(point, unknown) for point in grid.points()], dtype=np.float64)
    arrays = {name: table[:, n].reshape(grid.shape) for n, name in enumerate(Value._fields)}
    connected = directions.description.get("kind") == "pca"
    assert {*arrays} <= {field.name for field in fields(Surface)}
    return Surface(grid, **arrays, labels=directions.labels, path=directions.path, connected=connected)


class PointEvaluator:
    """Evaluates the objective at points, and leaves no trace: parameters, buffers, random states and modes come back.

    1. Parameters go to t0 + x d_1 + y d_2; buffers, where the directions have anchors, to ``Directions.buffers_at``.
    2. With ``model_eval``, batch norm uses the stored statistics, with ``recalibrate`` those re-estimated at the point
       over all the data; without, the model is in training mode: statistics of the sub-batches, dropout with the same
       masks at every point.
    3. L and the accuracy by forward passes alone; the full objective adds ``decay()`` and the regularizer's penalty,
       which takes a pass of gradients where it is not zero.

    Args:
        objective: on the training data, without augmentation.
        directions: from the present parameters.
        decay: what weight decay adds, where the parameters stand when it is called; None: nothing.
        full: whether to compute the full objective.
        model_eval: see above.
        recalibrate: see above.
    """

    def __init__(
        self,
        objective: FullBatchObjective,
        directions: Directions,
        *,
        decay: Callable[[], Tensor] | None = None,
        full: bool = True,
        model_eval: bool = True,
        recalibrate: bool = False,
    ) -> None:
        self.objective, self.directions, self.decay, self.full = objective, directions, decay, full
        self.model_eval, self.recalibrate = model_eval, recalibrate
        self._origin = clones(trainable(objective.model))

    def __call__(self, point: Point, beat: Callable[[], None] = lambda: None) -> Value:
        """Return the values at a point; ``beat`` is called before every block."""
        model = self.objective.model
        objective = self.objective.over(_Watched(self.objective.data, beat))
        with parameters_at(model, self._parameters(point)), mode(model, training=not self.model_eval):
            self._move_buffers(point)
            recalibrated = recalibrated_batchnorm(model, objective.sub_batches()) if self.recalibrate else nullcontext()
            with recalibrated:
                found = self._evaluated(objective)
        return Value(*found.tolist())  # the point's one synchronization

    def _parameters(self, point: Point) -> list[Tensor]:
        values = self._origin
        for coordinate, vector in zip(point, self.directions.vectors, strict=False):
            if coordinate != 0:
                values = scaled_sum(values, vector, coordinate)
        return values

    def _move_buffers(self, point: Point) -> None:
        if self.directions.anchors:
            own = floating_buffers(self.objective.model)
            with torch.no_grad():
                copy_(own, self.directions.buffers_at(own, point))

    def _evaluated(self, objective: FullBatchObjective) -> Tensor:
        if not self.full:
            found = objective.loss()
            return torch.stack([found.loss, found.accuracy, torch.full_like(found.loss, torch.nan)])
        whole = objective.value()
        full_loss = whole.loss + whole.penalty + (0.0 if self.decay is None else self.decay())
        return torch.stack([whole.loss, whole.accuracy, full_loss])


class _Watched:
    """Data that tell when a block is asked for."""

    def __init__(self, data: Iterable[Any], beat: Callable[[], None]) -> None:
        self._data, self._beat = data, beat

    def __iter__(self) -> Iterator[Any]:
        for block in self._data:
            self._beat()
            yield block


def require_plane(directions: Directions, grid: Grid) -> None:
    """Raise ``ValueError`` where the grid needs a direction that there is not."""
    if len(directions.vectors) < 2 and grid.y.values() != [0.0]:
        raise ValueError("there is one direction: a plane needs two (of a trajectory, three checkpoints or more)")
