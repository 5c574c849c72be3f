"""Computes the points of a grid that a database lacks, together with other processes."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import nn

from fullbatch.landscape.directions import Directions
from fullbatch.landscape.grid import Grid, Point
from fullbatch.landscape.store import SurfaceStore
from fullbatch.landscape.surface import PointEvaluator, Surface, surface_of
from fullbatch.runtime.logs import progress

log = logging.getLogger(__name__)

_WAIT = 0.2  # seconds between looks at points that other processes compute


def fill(
    store: SurfaceStore, grid: Grid, evaluate: PointEvaluator, interrupted: Callable[[], bool] = lambda: False
) -> Surface:
    """Compute the points of the grid that neither the database has nor other processes are computing.

    Returns the surface when all points are stored, or after the current point if ``interrupted`` returns True. Points
    whose records are damaged are computed again.

    Raises:
        OSError: a point that was stored here cannot be read again.
    """
    points, computed = grid.points(), set[Point]()
    values = store.values(points)
    if values and len(values) < len(points):
        log.info("%s: continuing with %d of %d points computed", store.folder, len(values), len(points))
    while len(values) < len(points) and not interrupted():
        pending = [point for point in points if point not in values]
        if lost := computed.intersection(pending):
            raise OSError(
                f"{store.folder}: the point {min(lost)} was stored and cannot be read again ({len(lost)} in all); the "
                "file or its disk is damaged; viz.rebuild_existing_database=True computes all points anew"
            )
        computed |= _compute(store, deque(pending), evaluate, interrupted, len(points))
        values = store.values(points)
    return surface_of(grid, values, evaluate.directions)


def _compute(
    store: SurfaceStore, pending: deque[Point], evaluate: PointEvaluator, interrupted: Callable[[], bool], total: int
) -> set[Point]:
    """Compute the pending points of ``total`` and wait for those of other processes; return those computed here."""
    computed, done = set[Point](), total - len(pending)
    outside = len(store) - done  # of the grid, or damaged
    with progress("points of the surface", total, done) as advance:
        while pending and not interrupted():
            point = store.claim(pending)
            if point is not None:
                try:
                    value = evaluate(point, partial(store.renew, point))
                except BaseException:
                    store.release(point)
                    raise
                store.put(point, value)
                computed.add(point)
            elif pending:
                time.sleep(_WAIT)
            count = min(len(store) - outside, total)
            if count > done:
                advance(count - done)
                done = count
    return computed


def arrays_of(directions: Directions, model: nn.Module) -> dict[str, np.ndarray]:
    """Return directions and path as arrays by name, for a database."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    arrays = {
        f"{axis}/{name}": part.cpu().to(torch.promote_types(part.dtype, torch.float32)).numpy()
        for axis, vector in zip("xy", directions.vectors, strict=False)
        for name, part in zip(names, vector, strict=True)
    }
    return {**arrays, "path": np.array(directions.path, dtype=np.float64).reshape(-1, 2)}


def stored_directions(directions: Directions, model: nn.Module, arrays: Mapping[str, np.ndarray]) -> Directions:
    """Return the directions with the numbers of the database.

    Directions drawn on another machine may differ in the last bit.
    """
    names = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    vectors = tuple(
        [torch.from_numpy(arrays[f"{axis}/{name}"]).to(parameter) for name, parameter in names]
        for axis, _ in zip("xy", directions.vectors, strict=False)
    )
    path = tuple((float(x), float(y)) for x, y in arrays["path"])
    return Directions(vectors, directions.description, directions.labels, directions.anchors, path)
