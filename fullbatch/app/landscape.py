"""The loss landscape around a checkpoint: computed, stored in a database, and drawn."""

import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from fullbatch.app.job_scope import JobScope, job_scope
from fullbatch.app.restore import restore
from fullbatch.build.landscape import LandscapeJob, build_landscape
from fullbatch.landscape.export import save_surface
from fullbatch.landscape.filling import fill
from fullbatch.landscape.surface import Surface
from fullbatch.runtime.figures import written
from fullbatch.settings import Run
from fullbatch.settings.parse import parse_tree, to_tree
from fullbatch.training.checkpoint import CHECKPOINTS, checkpoint_path

log = logging.getLogger(__name__)


def landscape_job(cfg: DictConfig) -> int:
    """Compute the surface ``viz`` around the checkpoint ``impl.checkpoint.name`` and draw it into the run folder.

    Data, model and objective are the checkpoint's, except for the keys on the command line, each of which is logged,
    and for paths and code, which only the command line can name; for a file of another program they are all the command
    line's. The database lies beside a checkpoint that is given by its path, else in ``checkpoints/``. Returns the exit
    status, see ``ExitStatus``.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    with job_scope(folder) as scope, ExitStack() as stack:
        run, landscape, title = _build(to_tree(cfg), HydraConfig.get().overrides.task)
        database = checkpoint_path(str(run.impl.checkpoint.name)).with_suffix(".landscape")
        if run.viz.database_name is not None:
            database = Path(CHECKPOINTS) / f"{run.viz.database_name}.landscape"
        if run.dryrun:  # files go where they do not stay
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            database = folder / "database"
        _compute(run, landscape, database, folder, title, scope)
    return scope.status


def _build(tree: dict[str, Any], overrides: Sequence[str]) -> tuple[Run, LandscapeJob, str]:
    """Return the run with the checkpoint's configuration, its landscape, and a title."""
    run = parse_tree(tree)
    name = run.impl.checkpoint.name
    if name is not None and run.viz.type == "none":
        raise ValueError("viz=none: there is nothing to compute; accepted: 1d, 2d")
    tree, stored = restore(tree, name, overrides)
    run = parse_tree(tree)
    return run, build_landscape(run, stored, str(name)), f"{name}, {stored.step or 'unknown'} steps"


def _compute(run: Run, landscape: LandscapeJob, database: Path, folder: Path, title: str, scope: JobScope) -> None:
    """Compute the points that the database lacks, and write the files."""
    axes = zip(
        {"x": landscape.grid.x, "y": landscape.grid.y}.items(), landscape.evaluate.directions.labels, strict=False
    )
    described = ", ".join(f"{name} {label}" for (name, axis), label in axes if axis.num > 1)
    with landscape.open(database, run.viz) as store:
        log.info("%s: %s points, %s", database, f"{len(landscape.grid.points()):,}", described)
        surface = fill(store, landscape.grid, landscape.evaluate, lambda: bool(scope.caught))
    if scope.caught:
        log.warning("paused; the same command continues with %s", database)
        scope.status = scope.caught.exit_status
        return
    values = surface.full_loss if run.viz.compute_full_loss else surface.loss
    overflowing = int((~np.isfinite(values)).sum())
    if overflowing:  # all points are computed here
        log.warning("%d of %d values are not finite: the model overflows there", overflowing, values.size)
    stem = f"landscape_{database.name.removesuffix('.landscape')}"
    paths = [folder / f"{stem}.{form}" for form in dict.fromkeys(run.viz.formats)]
    names = [path.name for path in paths if written(path, partial(save_surface, surface, path, title))]
    if not run.dryrun:
        log.info("%s: %s", folder, ", ".join(names) or "no files")
    scope.console.print(_table(surface, title))


def _table(surface: Surface, title: str) -> Table:
    """Return the extremes of each quantity, and its value at the checkpoint if that is on the grid."""
    points = surface.grid.points()
    table = Table("", "lowest", "at", "highest", "at", title=title)
    for name, array in surface.quantities().items():
        values = array.reshape(-1)
        if not np.isfinite(values).any():
            continue
        finite = np.where(np.isfinite(values), values, np.nan)
        extremes = [int(np.nanargmin(finite)), int(np.nanargmax(finite))]
        shown = [(_format(name, values[n]), f"({points[n][0]:g}, {points[n][1]:g})") for n in extremes]
        table.add_row(name, *(cell for pair in shown for cell in pair))
    if (0.0, 0.0) in points:
        center = points.index((0.0, 0.0))
        table.caption = "at the checkpoint: " + ", ".join(
            f"{name} {_format(name, array.reshape(-1)[center])}" for name, array in surface.quantities().items()
        )
    return table


def _format(name: str, value: float) -> str:
    return f"{value:.2%}" if name == "accuracy" else f"{value:.6g}"
