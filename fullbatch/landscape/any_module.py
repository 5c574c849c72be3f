"""The loss surface of any module and data in one call."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fullbatch.landscape.digests import digest_of_data, digest_of_model
from fullbatch.landscape.directions import Directions, random_directions
from fullbatch.landscape.filling import arrays_of, fill, stored_directions
from fullbatch.landscape.grid import POINT, Axis, Grid
from fullbatch.landscape.records import manifest_of
from fullbatch.landscape.store import SurfaceStore
from fullbatch.landscape.surface import PointEvaluator, Surface, require_plane, surface_of
from fullbatch.objective.arguments import accepts_data
from fullbatch.objective.blocks import iterate
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.tensors import global_norm, trainable


@accepts_data
def loss_landscape(
    objective: FullBatchObjective,
    directions: Directions | None = None,
    *,
    x: Axis | None = None,
    y: Axis | None = None,
    weight_decay: float = 0.0,
    model_eval: bool = True,
    recalibrate: bool = False,
    folder: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Surface:
    """Compute the surface of a module's loss on a data set; the module is restored bitwise.

    Args:
        objective: the loss on its data, which are the same samples in every pass, so without augmentation. Given in its
            place may be ``model, loss_fn, data``, with the keywords ``regularizer``, part of the full objective,
            ``sub_batch``, and ``mixed_precision``: False, True for bfloat16, or a dtype of ``torch.autocast``.
        directions: from ``random_directions`` (the default: filter-normalized, seed 0), ``directions_between`` or
            ``principal_components``.
        x: coordinates along the first direction; None: 51 from -1 to 1.
        y: coordinates along the second direction; None: a line, y = 0.
        weight_decay: factor of ||t||^2/2 in the full objective, over all trainable parameters.
        model_eval: True uses the stored batch-norm statistics, False those of the sub-batches (and dropout).
        recalibrate: re-estimate the stored statistics at every point over all the data.
        folder: of a database that stores every point: the next call continues, other processes can share the work, and
            a finer grid computes its new points only. None: nothing is stored.
        settings: plain JSON that identifies the database beside the arguments, such as a name of the loss.

    Raises:
        ValueError: contradictory arguments, or a database of another surface.
        OSError: a damaged or unusable database.
    """
    if recalibrate and not model_eval:
        raise ValueError("recalibrate=True: re-estimates stored statistics, which model_eval=False does not use")
    grid = Grid(x or Axis(), y or POINT)
    model, regularizer = objective.model, objective.regularizer
    directions = directions or random_directions(model)
    require_plane(directions, grid)

    def decay() -> Tensor:
        return weight_decay / 2 * global_norm(trainable(model)).square()

    modes = {"model_eval": model_eval, "recalibrate": recalibrate}
    if folder is None:
        evaluate = PointEvaluator(objective, directions, decay=decay, **modes)
        return surface_of(grid, {point: evaluate(point) for point in grid.points()}, directions)
    arrays = arrays_of(directions, model)
    strengths: list[float] = []  # of the regularizer: alpha, beta and eta
    if regularizer is not None and regularizer.active:
        strengths = [regularizer.block_strength, regularizer.acc_strength, regularizer.learning_rate]
    numbers = {
        "weight_decay": weight_decay,
        "sub_batch": objective.sub_batch,
        "mixed_precision": str(objective.arithmetic.autocast),
    }
    manifest = manifest_of(
        arrays,
        weights=digest_of_model(model),
        data=digest_of_data(iterate(objective.data, required=True)),
        directions=directions.description,
        settings={**modes, **numbers, "regularizer": strengths, **(settings or {})},
    )
    with SurfaceStore(Path(folder), manifest, arrays, num_points=len(grid.points())) as store:
        directions = stored_directions(directions, model, store.arrays)
        return fill(store, grid, PointEvaluator(objective, directions, decay=decay, **modes))
