"""The loss landscape around a checkpoint: computed, kept in a database, drawn."""

import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fullbatch.app.resume import restored
from fullbatch.app.train import DONE, mistake
from fullbatch.build.landscape import LandscapeJob, build_landscape
from fullbatch.data.reading import translate_worker_errors
from fullbatch.landscape.export import save_surface
from fullbatch.landscape.filling import fill
from fullbatch.landscape.surface import Surface
from fullbatch.runtime.logs import job_log
from fullbatch.runtime.stop_requests import InterruptedWork, Interruption, interruption
from fullbatch.settings import Run
from fullbatch.settings.parse import plain, settings_of

log = logging.getLogger(__name__)


def crunch_job(cfg: DictConfig) -> int:
    """Compute the surface ``viz`` around the checkpoint ``impl.checkpoint.name`` and draw it into the run folder.

    Data, model and hyperparameters are the checkpoint's, but for the keys that the command line names, each of which is
    reported; of a file of another program they are all the command line's. Returns the exit status: 0, 2 for a
    mistake, 128 + n after signal n.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    with ExitStack() as stack:
        terminal = stack.enter_context(job_log(folder / "log.txt"))
        interrupted = stack.enter_context(interruption())
        try:
            with translate_worker_errors():
                run, landscape, title = _prepared(plain(cfg), HydraConfig.get().overrides.task)
            database = database_folder(run)
            if run.dryrun:  # every file goes where it does not stay
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                database = folder / "database"
            with translate_worker_errors():
                return crunch(run, landscape, database, folder, title, interrupted, terminal.out)
        except InterruptedWork as error:
            log.warning("%s", error)
            return interrupted.exit_status
        except (ValueError, OSError) as error:
            return mistake(error)


def _prepared(tree: dict[str, Any], typed: Sequence[str]) -> tuple[Run, LandscapeJob, str]:
    """Return the run with the checkpoint's configuration, its surface, and a title."""
    run = settings_of(tree)
    name = run.impl.checkpoint.name
    if name is None:
        raise ValueError("impl.checkpoint.name: blank; give the name of the checkpoint to look around")
    if run.viz.type == "none":
        raise ValueError("viz=none: there is nothing to compute; accepted: 1d, 2d")
    tree, stored = restored(tree, name, typed)
    run = settings_of(tree)
    return run, build_landscape(run, stored, name), f"{name}, {stored.step or 'unknown'} steps"


def database_folder(run: Run) -> Path:
    """Return where the database of the run's surface is."""
    name = run.viz.database_name or str(run.impl.checkpoint.name).removesuffix(".pth").removesuffix(".pt")
    return Path("checkpoints") / f"{name}.landscape"


def crunch(
    run: Run,
    landscape: LandscapeJob,
    database: Path,
    folder: Path,
    title: str,
    interrupted: Interruption,
    console: Console,
) -> int:
    """Fill the database and write the files; see ``crunch_job``."""
    with landscape.open(database, run.viz) as store:
        log.info("%s: %s points, %s", database, f"{len(landscape.grid.points()):,}", ", ".join(_axes(landscape)))
        surface = fill(store, landscape.grid, landscape.evaluate, lambda: bool(interrupted))
    values = surface.full_loss if run.viz.compute_full_loss else surface.loss
    overflowing = int((~np.isfinite(values)).sum())
    if interrupted:
        log.warning("paused; the same line continues with %s", database)
        return interrupted.exit_status
    if overflowing:
        log.warning("%d of %d values are not finite: the model overflows there", overflowing, values.size)
    stem = f"landscape_{database.name.removesuffix('.landscape')}"
    paths = [folder / f"{stem}.{form}" for form in dict.fromkeys(run.viz.formats)]
    written = [path.name for path in paths if save_surface(surface, path, title)]
    if not run.dryrun:
        log.info("%s: %s", folder, ", ".join(written) or "no files")
    console.print(_table(surface, title))
    return DONE


def _axes(landscape: LandscapeJob) -> list[str]:
    axes = {"x": landscape.grid.x, "y": landscape.grid.y}
    labels = landscape.evaluate.directions.labels
    return [f"{name} {label}" for (name, axis), label in zip(axes.items(), labels, strict=False) if axis.num > 1]


def _table(surface: Surface, title: str) -> Table:
    """Return the values at the model itself, where it is on the grid, and the extremes."""
    points = surface.grid.points()
    table = Table("", "lowest", "at", "highest", "at", title=title)
    for name, array in surface.quantities().items():
        values = array.reshape(-1)
        if not np.isfinite(values).any():
            continue
        known = np.where(np.isfinite(values), values, np.nan)
        extremes = [int(np.nanargmin(known)), int(np.nanargmax(known))]
        shown = [(_number(name, values[n]), f"({points[n][0]:g}, {points[n][1]:g})") for n in extremes]
        table.add_row(name, *(cell for pair in shown for cell in pair))
    if (0.0, 0.0) in points:
        here = points.index((0.0, 0.0))
        table.caption = "at the checkpoint: " + ", ".join(
            f"{name} {_number(name, array.reshape(-1)[here])}" for name, array in surface.quantities().items()
        )
    return table


def _number(name: str, value: float) -> str:
    return f"{value:.2%}" if name == "accuracy" else f"{value:.6g}"
