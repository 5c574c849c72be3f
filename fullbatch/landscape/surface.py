"""Evaluates the objective at points of a surface, and arranges the values on a grid."""

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
    """The quantities at a point."""

    loss: float
    """L, the training loss."""
    accuracy: float
    """Fraction of correctly classified samples."""
    full_loss: float
    """L + weight_decay/2 ||t||^2 + the penalty of the regularizer; NaN if it was not requested."""


@dataclass(frozen=True)
class Surface:
    """A surface: arrays of the shape of the grid, NaN at points that were not computed."""

    grid: Grid
    loss: np.ndarray
    accuracy: np.ndarray
    full_loss: np.ndarray
    labels: tuple[str, ...] = ("x", "y")
    path: tuple[Point, ...] = ()
    """Points to mark."""
    connected: bool = False
    """Whether the path is a trajectory."""

    def quantities(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, without accuracy or full loss if these were not computed."""
        arrays = {name: getattr(self, name) for name in Value._fields}
        return {name: array for name, array in arrays.items() if name == "loss" or not np.isnan(array).all()}


def surface_of(grid: Grid, values: dict[Point, Value], directions: Directions) -> Surface:
    """Arrange the values on the grid."""
    missing = Value(*[np.nan] * len(Value._fields))
    table = np.array([values.get(point, missing) for point in grid.points()], dtype=np.float64)
    arrays = {name: table[:, n].reshape(grid.shape) for n, name in enumerate(Value._fields)}
    connected = directions.description.get("kind") == "pca"
    assert {*arrays} <= {field.name for field in fields(Surface)}
    return Surface(grid, **arrays, labels=directions.labels, path=directions.path, connected=connected)


class PointEvaluator:
    """Evaluates the objective at points, and restores parameters, buffers, random states and modes bitwise.

    1. The parameters are set to t0 + x d_1 + y d_2, the buffers, if the directions have anchors, to
       ``Directions.buffers_at``.
    2. With ``model_eval``, batch norm uses the stored statistics, or with ``recalibrate`` those re-estimated at the
       point over all the data. Without, the model is in training mode: batch norm uses the statistics of the
       sub-batches, and dropout the same masks at every point.
    3. L and the accuracy need forward passes only. The full objective adds ``decay()`` and the penalty of the
       regularizer, which needs gradients unless it is zero.

    Args:
        objective: on the training data, without augmentation.
        directions: from the current parameters.
        decay: returns the penalty of weight decay at the current parameters; None: no penalty.
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
        model, parameters = self.objective.model, self._origin
        for coordinate, vector in zip(point, self.directions.vectors, strict=False):
            if coordinate != 0:
                parameters = scaled_sum(parameters, vector, coordinate)
        objective = self.objective.over(_DataWithHeartbeat(self.objective.data, beat))
        with parameters_at(model, parameters), mode(model, training=not self.model_eval):
            del parameters  # frees a copy of the parameters
            if self.directions.anchors:
                buffers = floating_buffers(model)
                with torch.no_grad():
                    copy_(buffers, self.directions.buffers_at(buffers, point))
            recalibrated = recalibrated_batchnorm(model, objective.sub_batches()) if self.recalibrate else nullcontext()
            with recalibrated:
                values = self._evaluate(objective)
        return Value(*values.tolist())  # the only synchronization of the point

    def _evaluate(self, objective: FullBatchObjective) -> Tensor:
        if not self.full:
            evaluation = objective.loss()
            return torch.stack([evaluation.loss, evaluation.accuracy, torch.full_like(evaluation.loss, torch.nan)])
        value = objective.value()
        full_loss = value.loss + value.penalty + (0.0 if self.decay is None else self.decay())
        return torch.stack([value.loss, value.accuracy, full_loss])


class _DataWithHeartbeat:
    """Calls ``beat`` before every block."""

    def __init__(self, data: Iterable[Any], beat: Callable[[], None]) -> None:
        self.data, self.beat = data, beat

    def __iter__(self) -> Iterator[Any]:
        for block in self.data:
            self.beat()
            yield block


def require_plane(directions: Directions, grid: Grid) -> None:
    """Raise ``ValueError`` if the grid needs more directions than there are."""
    if len(directions.vectors) < 2 and grid.y.values() != [0.0]:
        raise ValueError("there is one direction: a plane needs two (a trajectory, three checkpoints or more)")
