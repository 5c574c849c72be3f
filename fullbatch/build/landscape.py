"""Builds the computation of a loss landscape from settings and a checkpoint."""

import glob
import logging
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from fullbatch.build.data import about, build_loss
from fullbatch.build.problem import build_problem
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
from fullbatch.landscape.records import manifest_of
from fullbatch.landscape.store import SurfaceStore
from fullbatch.landscape.surface import PointEvaluator, require_plane
from fullbatch.models.model_file import StoredModel, read_model
from fullbatch.models.weights import load_weights
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.optim.weight_decay import decay_penalty
from fullbatch.runtime.device import describe
from fullbatch.runtime.files import expand_home
from fullbatch.runtime.lmdb import LMDBOptions
from fullbatch.runtime.manifests import Manifest
from fullbatch.settings import Run, Viz
from fullbatch.settings.optim import UserOptimizer
from fullbatch.training.checkpoint import CHECKPOINTS, checkpoint_path

log = logging.getLogger(__name__)

_OBJECTIVE_KEYS = (
    *("loss_modification", "label_smoothing", "sub_batch", "gradient_average", "only_linear_layers_weight_decay"),
    "label_noise",
)
"""Keys of ``hyp`` that change the objective."""


@dataclass(frozen=True)
class LandscapeJob:
    """The computation of a surface: the evaluator, the grid, and the contents of its database."""

    evaluate: PointEvaluator
    grid: Grid
    manifest: Manifest
    arrays: dict[str, np.ndarray]

    def open(self, folder: Path, viz: Viz) -> SurfaceStore:
        """Open the database in ``folder`` and use the directions that it contains."""
        options = LMDBOptions(viz.max_readers, viz.readahead, viz.meminit, viz.max_spare_txns, viz.map_size)
        rebuild, size = viz.rebuild_existing_database, len(self.grid.points())
        store = SurfaceStore(folder, self.manifest, self.arrays, options, rebuild=rebuild, num_points=size)
        self.evaluate.directions = stored_directions(
            self.evaluate.directions, self.evaluate.objective.model, store.arrays
        )
        return store


def build_landscape(run: Run, stored: StoredModel, name: str) -> LandscapeJob:
    """Build the computation of the surface around the checkpoint ``name``; raise ``ValueError`` for users' mistakes."""
    grid = build_grid(run)
    if run.viz.recalibrate and not run.viz.model_eval:
        raise ValueError(
            "viz.recalibrate=True: re-estimates stored statistics, which viz.model_eval=False does not use"
        )
    run = without_augmentation(run)
    seed = int(stored.checkpoint.get("seed", run.seed or 0))
    problem = build_problem(run, seed)
    model, objective = problem.model, problem.objective
    with about(name):
        load_weights(model, stored.weights)
    directions = build_directions(run.viz, model)
    with about("viz.directions"):
        require_plane(directions, grid)
    num_samples = sum(problem.loader.blocks(0)[: problem.max_blocks].sizes)
    log.info("%s; %s samples in blocks of %d", describe(problem.device), f"{num_samples:,}", run.data.batch_size)
    evaluate = PointEvaluator(
        objective,
        directions,
        decay=lambda: decay_penalty(problem.optimizer),
        full=run.viz.compute_full_loss,
        model_eval=run.viz.model_eval,
        recalibrate=run.viz.recalibrate,
    )
    if objective.regularized and run.viz.compute_full_loss:
        eta = problem.optimizer.param_groups[0]["lr"]
        log.info("the full objective has the gradient regularizer with eta = hyp.optim.lr = %g", eta)
    arrays = arrays_of(directions, model)
    return LandscapeJob(
        evaluate, grid, _manifest(run, stored, objective, problem.optimizer, directions, arrays), arrays
    )


def build_grid(run: Run) -> Grid:
    """Build the grid of ``viz.type``, a single point in a dry run."""
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


def without_augmentation(run: Run) -> Run:
    """Return the run with the training images prepared like those of the validation set.

    All copies of a sample are then equal, and Maxup is the mean of the losses. All rounds of frozen copies count.
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
    models = _read_checkpoints(viz, model)
    with about("viz.checkpoints"):
        if viz.directions == "between":
            return directions_between(model, models, seed=viz.seed, norm=viz.norm, ignore_layers=viz.ignore_layers)
        return principal_components(model, list(models.values()))


def _read_checkpoints(viz: Viz, model: nn.Module) -> dict[str, nn.Module]:
    """Return copies of the model with the weights of ``viz.checkpoints`` by name, a trajectory by step and path.

    The name is that of the file, or its path where several files have the same name.
    """
    files: dict[Path, Path] = {}
    for pattern in viz.checkpoints or ():
        for path in _find_checkpoints(pattern):
            first = files.setdefault(path.resolve(), path)
            if first is not path and viz.directions == "between":
                raise ValueError(f"viz.checkpoints: {first} and {path} are one file; give each checkpoint once")
    checkpoints = [(path, read_model(path)) for path in files.values()]
    if viz.directions == "pca":
        checkpoints.sort(key=lambda checkpoint: (checkpoint[1].step or 0, str(checkpoint[0])))
    stems = Counter(path.stem for path, _ in checkpoints)
    models, paths = {}, dict[str, Path]()
    for path, stored in checkpoints:
        with about(str(path)):
            copied = copy_with(model, stored.weights)
        models[path.stem if stems[path.stem] == 1 else str(path)] = copied
        first = paths.setdefault(digest_of_model(copied), path)
        if first is not path:
            log.warning("viz.checkpoints: %s and %s have the same weights", first, path)
    return models


def _find_checkpoints(pattern: str) -> list[Path]:
    """Return the files of an entry of ``viz.checkpoints``: a name, a path or a pattern."""
    for path in (checkpoint_path(pattern), expand_home(pattern, "viz.checkpoints")):
        if path.is_file():
            return [path]
    patterns = (str(expand_home(pattern, "viz.checkpoints")), f"{CHECKPOINTS}/{pattern}")
    matches = [match for place in patterns for match in sorted(glob.glob(place, recursive=True))]
    files = [Path(match) for match in matches if Path(match).is_file()]
    if not files:
        raise ValueError(f"viz.checkpoints={pattern}: there is neither {checkpoint_path(pattern)} nor a file {pattern}")
    return files


def _manifest(
    run: Run,
    stored: StoredModel,
    objective: FullBatchObjective,
    optimizer: Optimizer,
    directions: Directions,
    arrays: dict[str, np.ndarray],
) -> Manifest:
    """Return the manifest: everything that changes the values by more than rounding."""
    hyp = run.hyp
    # the class of another package has defaults of its own
    configured = optimizer.param_groups[0] if isinstance(hyp.optim, UserOptimizer) else asdict(hyp.optim)
    strengths = {"block_strength": hyp.grad_reg.block_strength, "acc_strength": hyp.grad_reg.acc_strength}
    settings: dict[str, Any] = {
        "model": asdict(run.model),
        "data": {"batch_size": run.data.batch_size, "digest": digest_of_data(objective.data)},
        "hyp": {
            **{key: getattr(hyp, key) for key in _OBJECTIVE_KEYS},
            "grad_reg": strengths,
            "optim": {key: configured.get(key) for key in ("lr", "weight_decay")},
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
