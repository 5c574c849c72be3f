"""Trains one job, from its configuration to its exit status: its folder, its checkpoint, its rows in tables."""

import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from fullbatch.analysis.figure import draw_edge_of_stability
from fullbatch.app.argv import command_line, is_torchrun_worker
from fullbatch.app.exit_status import ExitStatus
from fullbatch.app.identity import RunIdentity
from fullbatch.app.job import Job, describe_progress, display_name, open_loggers, reason_of_end, record_row, summary
from fullbatch.app.job_scope import JobScope, job_scope
from fullbatch.app.ledger_entry import LedgerEntry, enter, report_already_done, show_result
from fullbatch.app.paths import RunPaths
from fullbatch.app.plan import print_plan
from fullbatch.app.prepare import prepare
from fullbatch.app.processes import join_processes, launch_from
from fullbatch.app.worker import DONE_BEFORE, run_launched_worker, run_started_worker
from fullbatch.build.precision import overflow_advice
from fullbatch.data.reading import translate_worker_errors
from fullbatch.results.curves import draw_curves
from fullbatch.results.ledger import Ledger, State
from fullbatch.runtime.figures import written
from fullbatch.runtime.files import require_writable
from fullbatch.runtime.locks import claimed
from fullbatch.runtime.logs import ProgressBar
from fullbatch.runtime.process_group import Group
from fullbatch.runtime.stop_requests import StopRequests
from fullbatch.settings import Run
from fullbatch.settings.parse import parse, parse_tree, to_tree
from fullbatch.training.checkpoint import find_checkpoint, save_checkpoint
from fullbatch.training.loggers import require_loggers
from fullbatch.training.step import DivergedError
from fullbatch.training.tables import ConvergenceTable
from fullbatch.training.trainer import Observer, validate_last

log = logging.getLogger(__name__)


def train_job(cfg: DictConfig) -> int:
    """Train with all processes of the job; return the exit status, see ``ExitStatus``.

    The processes that a launcher has started besides the main one run as workers.
    """
    folder, launch = Path(HydraConfig.get().runtime.output_dir), None
    with suppress(ValueError, OSError):  # raised again below, where there is a log
        run = parse(cfg)
        launch = launch_from(run.impl)
    if launch is not None and not launch.is_main:
        status = ExitStatus.DONE if run.plan else run_launched_worker(to_tree(cfg), launch, run.impl)
        with suppress(OSError):
            folder.rmdir()  # made by Hydra; empty unless the main process has the same
        return status
    if launch is None and is_torchrun_worker():
        return ExitStatus.MISTAKE  # which the main process reports
    with job_scope(folder) as scope:
        tree = to_tree(cfg)
        run = parse_tree(tree)
        if run.plan:
            print_plan(run, scope.console)
        else:
            _train_with_workers(run, tree, folder, scope)
    return scope.status


def _train_with_workers(run: Run, tree: dict[str, Any], folder: Path, scope: JobScope) -> None:
    with ExitStack() as stack:
        if run.dryrun:  # files go where they do not stay
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        launch, status = launch_from(run.impl), lambda: scope.status
        group = stack.enter_context(join_processes(launch, run.impl, tree, run_started_worker, status))
        with scope.errors():  # here, so that the workers learn how it ended
            scope.status = _train(run, tree, RunPaths.of(run, folder), group, scope)


def _train(run: Run, tree: dict[str, Any], paths: RunPaths, group: Group, scope: JobScope) -> int:
    identity = RunIdentity.of(run, tree)
    if identity.former != identity.configuration and paths.ledger.exists():
        identity = identity.as_recorded(Ledger(paths.ledger).attempts())
    requests = StopRequests(scope.caught, group, run.impl.checkpoint.max_minutes)
    for path in (paths.checkpoint, paths.table):
        require_writable(path)
    require_loggers(run.impl.logger)
    with enter(run, identity, paths) as entry, ExitStack() as stack:
        group.broadcast(b"" if entry.already_done is None else DONE_BEFORE)
        if entry.already_done is not None:
            return report_already_done(entry.already_done, display_name(run), scope.console)
        if run.impl.checkpoint.name is not None:
            stack.enter_context(claimed(paths.checkpoint))
        stack.enter_context(translate_worker_errors())  # for the ledger
        job = prepare(run, tree, identity, paths, group, requests)
        entry.start()
        scope.note = lambda: f"; the last checkpoint is {find_checkpoint(paths.checkpoint) or 'none'}"
        return execute(job, entry, requests, scope.console)


def execute(job: Job, entry: LedgerEntry, requests: StopRequests, console: Console) -> int:
    """Train, record and report the end, then draw; return the exit status.

    Raises ``DivergedError`` at the end.
    """
    training, paths = job.training, job.paths
    if training.is_done:
        log.info("this run has finished before (%s); its result:", reason_of_end(job))
        validate_last(training.state, training.validate)
        result = summary(job)
        if entry.was_unfinished:  # perhaps it ended between the last checkpoint and the row
            record_row(job, result, unless=("name", "configuration", "seed"))
        entry.end(State.FINISHED, reason_of_end(job), result)
        show_result(result, display_name(job.run), console)
        return ExitStatus.DONE
    with open_loggers(job) as loggers:  # closed after the run is recorded, which may take long
        diverged = _take_steps(job, requests, loggers, console)
        if diverged is not None or training.is_done:
            _record_end(job, entry, console, diverged)
        else:
            log.warning("paused %s; the checkpoint is %s", describe_progress(training.state), paths.checkpoint)
            entry.end(State.INTERRUPTED, f"paused {describe_progress(training.state)}")
    _draw(job)
    if diverged is not None:
        last_good = find_checkpoint(paths.checkpoint) or "none, the first step diverged"
        raise DivergedError(f"{diverged}{overflow_advice(job.run)}; the last good checkpoint is {last_good}")
    return ExitStatus.DONE if training.is_done else requests.exit_status


def _take_steps(
    job: Job, requests: StopRequests, loggers: Sequence[Observer], console: Console
) -> DivergedError | None:
    """Take the remaining steps; return the error of one that is not finite."""
    training, rows = job.training, job.training.state.rows
    path = job.paths.folder / f"table_{job.run.name}_convergence_results.csv"
    table = ConvergenceTable(path, [dict(row) for row in rows])
    with ProgressBar(console, training.plan.steps, training.state.step) as bar:
        trainer = training.trainer(
            probes=job.probes,
            observers=[table.append, *loggers, bar],
            save=partial(_save, job, requests),
            request=requests.synchronize,
        )
        try:
            trainer.run()
        except DivergedError as error:
            return error
    return None


def _record_end(job: Job, entry: LedgerEntry, console: Console, diverged: DivergedError | None) -> None:
    """Record a run that is finished or has diverged in the table of runs and in the ledger; then show its result."""
    result = summary(job)
    record_row(job, result, diverged)
    if diverged is not None:
        entry.end(State.DIVERGED, str(diverged))
        return
    log.info("done: %s", reason_of_end(job))
    entry.end(State.FINISHED, reason_of_end(job), result)
    show_result(result, display_name(job.run), console)


def _draw(job: Job) -> None:
    """Draw the curves and the sharpness."""
    name, rows = job.run.name, job.training.state.rows
    curves, sharpness = (job.paths.folder / f"{kind}_{name}.png" for kind in ("curves", "sharpness"))
    figures = {
        curves: lambda: draw_curves(rows, curves, name),
        sharpness: lambda: draw_edge_of_stability({name: rows}, sharpness),
    }
    for path, draw in figures.items() if rows else ():
        written(path, draw)


def _save(job: Job, requests: StopRequests) -> None:
    data = job.training.problem.data
    images = {"channels": data.channels, "classes": len(data.classes), "pixels": data.pixels}
    save_checkpoint(
        job.paths.checkpoint,
        job.training.state.state_dict(),
        config=job.identity.config,
        seed=job.seed,
        images={**images, "mean": list(data.mean), "std": list(data.std)},
        command=command_line(),
        content=job.identity.content,
        parent=job.parent,
        keep=job.run.impl.checkpoint.keep,
    )
    requests.saved()
