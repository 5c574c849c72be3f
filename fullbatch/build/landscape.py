"""From settings and a checkpoint to what computes its loss landscape."""

import glob
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fullbatch.app.resume import checkpoint_path
from fullbatch.build.data import about, build_data, build_loader, build_loss
from fullbatch.build.optimizer import build_optimizer
from fullbatch.build.trainer import build_model, build_objective
from fullbatch.landscape.digests import digest_of_data, digest_of_model
from fullbatch.landscape.directions import (
    Directions,
    copy_with,
    directions_between,
    principal_components,
    random_directions,
)
from fullbatch.landscape.filling import arrays_of, stored_directions
from fullbatch.landscape.grid import POINT, Axis, Grid
from fullbatch.landscape.records import Manifest, manifest_of
from fullbatch.landscape.store import Access, SurfaceStore
from fullbatch.landscape.surface import PointEvaluator, require_plane
from fullbatch.models.compatibility import check_compatible
from fullbatch.models.weights import load_weights
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.optim.weight_decay import decay_penalty
from fullbatch.runtime.device import describe, find_device
from fullbatch.settings import Run, Viz
from fullbatch.training.model_file import StoredModel, read_model

log = logging.getLogger(__name__)

_OF_THE_OBJECTIVE = (
    *("loss_modification", "label_smoothing", "sub_batch", "gradient_average", "only_linear_layers_weight_decay"),
    "label_noise",
)


@dataclass(frozen=True)
class Landscape:
    """A surface that can be computed: the evaluator, its grid, and what its database holds."""

    evaluate: PointEvaluator
    grid: Grid
    manifest: Manifest
    arrays: dict[str, np.ndarray]

    def open(self, folder: Path, viz: Viz) -> SurfaceStore:
        """Open the database in ``folder``, and take the directions that are there."""
        access = Access(viz.max_readers, viz.readahead, viz.meminit, viz.max_spare_txns, viz.map_size)
        rebuild, size = viz.rebuild_existing_database, len(self.grid.points())
        store = SurfaceStore(folder, self.manifest, self.arrays, access, rebuild=rebuild, num_points=size)
        self.evaluate.directions = stored_directions(
            self.evaluate.directions, self.evaluate.objective.model, store.arrays
        )
        return store


def build_landscape(run: Run, stored: StoredModel, name: str) -> Landscape:
    """Build the surface of the checkpoint ``name``; ``ValueError`` and ``OSError`` for mistakes."""
    grid = build_grid(run)
    if run.viz.recalibrate and not run.viz.model_eval:
        raise ValueError(
            "viz.recalibrate=True: re-estimates stored statistics, which viz.model_eval=False does not use"
        )
    run = on_plain_images(run)
    seed = int(stored.checkpoint.get("seed", run.seed or 0))
    with about("impl"):
        device = find_device(run.impl.device)
    data = build_data(run, seed)
    model = build_model(run, data, seed, device)
    with about(name):
        load_weights(model, stored.weights)
    blocks = build_loader(run, data, data.train, seed, device).blocks(0)[: 1 if run.dryrun else None]
    with about("model"):
        check_compatible(model, next(iter(blocks[:1])).inputs[:1], len(data.classes))
    directions = build_directions(run.viz, model)
    with about("viz.directions"):
        require_plane(directions, grid)
    log.info("%s; %s samples in blocks of %d", describe(device), f"{sum(blocks.sizes):,}", run.data.batch_size)
    optimizer = build_optimizer(run.hyp, model)
    objective = build_objective(run, model, optimizer, blocks)
    evaluate = PointEvaluator(
        objective,
        directions,
        decay=lambda: decay_penalty(optimizer),
        full=run.viz.compute_full_loss,
        model_eval=run.viz.model_eval,
        recalibrate=run.viz.recalibrate,
    )
    if objective.regularized and run.viz.compute_full_loss:
        log.info("the full objective has the gradient regularizer with eta = hyp.optim.lr = %g", run.hyp.optim.lr)
    arrays = arrays_of(directions, model)
    return Landscape(evaluate, grid, _manifest(run, stored, objective, directions, arrays), arrays)


def build_grid(run: Run) -> Grid:
    """Build the grid: of the type that it should have; one point in a dry run."""
    coordinates, kind = run.viz.coordinates, run.viz.type
    axes = []
    for name, axis in (("x", coordinates.x), ("y", coordinates.y)):
        with about(f"viz.coordinates.{name}"):
            axes.append(Axis(axis.min, axis.max, axis.num))
    grid = Grid(*axes)
    if kind == "1d" and grid.is_plane:
        raise ValueError(f"viz.type=1d: a line, so viz.coordinates.y.num={grid.y.num} should be 1, or viz=2d")
    if kind == "2d" and not grid.is_plane:
        raise ValueError("viz.type=2d: a plane, so viz.coordinates.x.num and .y.num should be 2 or more, or viz=1d")
    return Grid(Axis(0.0, 0.0, 1), POINT) if run.dryrun else grid


def on_plain_images(run: Run) -> Run:
    """Return the run without augmentation: the training set as images for validation are prepared.

    All copies of a sample are then the same: Maxup is the mean of the losses. Of frozen copies all rounds count.
    """
    modification = None if build_loss(run.hyp).copies > 1 else run.hyp.loss_modification
    hyp = replace(run.hyp, train_semi_stochastic=False, loss_modification=modification)
    return replace(run, hyp=hyp, data=replace(run.data, augmentations_train=run.data.augmentations_val))


def build_directions(viz: Viz, model: nn.Module) -> Directions:
    """Build the directions from ``model``."""
    if viz.directions == "random":
        if viz.checkpoints:
            raise ValueError("viz.checkpoints: only with viz.directions=between or viz.directions=pca")
        return random_directions(model, seed=viz.seed, norm=viz.norm, ignore_layers=viz.ignore_layers)
    if not viz.checkpoints:
        raise ValueError(f"viz.checkpoints: blank; viz.directions={viz.directions} needs some")
    models = dict(_models(viz.checkpoints, model, by_step=viz.directions == "pca"))
    with about("viz.checkpoints"):
        if viz.directions == "between":
            return directions_between(model, models, seed=viz.seed, norm=viz.norm, ignore_layers=viz.ignore_layers)
        return principal_components(model, list(models.values()))


def _models(patterns: Sequence[str], model: nn.Module, *, by_step: bool) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and models of checkpoints; ``by_step``: those that took fewer steps first."""
    paths = [path for pattern in patterns for path in _found(pattern)]
    found = [(path, read_model(path)) for path in dict.fromkeys(paths)]
    for path, stored in sorted(found, key=lambda entry: entry[1].step or 0) if by_step else found:
        with about(str(path)):
            yield path.stem, copy_with(model, stored.weights)


def _found(pattern: str) -> list[Path]:
    """Return the files that an entry of ``viz.checkpoints`` means."""
    for path in (checkpoint_path(pattern), Path(pattern).expanduser()):
        if path.is_file():
            return [path]
    paths = [
        Path(path) for root in ("", "checkpoints/") for path in sorted(glob.glob(f"{root}{pattern}", recursive=True))
    ]
    files = [path for path in paths if path.is_file()]
    if not files:
        raise ValueError(f"viz.checkpoints={pattern}: there is neither {checkpoint_path(pattern)} nor a file {pattern}")
    return files


def _manifest(
    run: Run,
    stored: StoredModel,
    objective: FullBatchObjective,
    directions: Directions,
    arrays: dict[str, np.ndarray],
) -> Manifest:
    """Describe what the values are a function of; not what makes no difference but of rounding."""
    hyp, optimizer = run.hyp, asdict(run.hyp.optim)
    strengths = {"block_strength": hyp.grad_reg.block_strength, "acc_strength": hyp.grad_reg.acc_strength}
    settings: dict[str, Any] = {
        "model": asdict(run.model),
        "data": {"batch_size": run.data.batch_size, "digest": digest_of_data(objective.data)},
        "hyp": {
            **{key: getattr(hyp, key) for key in _OF_THE_OBJECTIVE},
            "grad_reg": strengths,
            "optim": {key: optimizer.get(key) for key in ("lr", "weight_decay")},
        },
        "impl": {"dtype": run.impl.dtype, "mixed_precision": run.impl.mixed_precision},
        "viz": {key: getattr(run.viz, key) for key in ("compute_full_loss", "model_eval", "recalibrate")},
    }
    versions = {"torch": torch.__version__}
    return manifest_of(
        arrays,
        checkpoint={"step": stored.step, "weights": digest_of_model(objective.model)},
        directions=directions.description,
        versions=versions,
        **settings,
    )
