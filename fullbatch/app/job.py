"""A run that is ready to start or to continue, and its descriptions in logs, files and tables."""

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from fullbatch.app.identity import RunIdentity
from fullbatch.app.paths import RunPaths
from fullbatch.app.provenance import write_record
from fullbatch.build.data import about
from fullbatch.build.trainer import Training
from fullbatch.optim.schedules import schedule_named
from fullbatch.runtime.device import describe
from fullbatch.runtime.files import format_error, write_atomically
from fullbatch.runtime.process_group import ALONE, Group
from fullbatch.runtime.stop_requests import InterruptedWork
from fullbatch.settings import Run
from fullbatch.settings.parse import flatten, to_yaml
from fullbatch.tensors import device_of
from fullbatch.training.cost import speed
from fullbatch.training.loggers import RunDescription, start_loggers
from fullbatch.training.state import TrainState
from fullbatch.training.step import DivergedError
from fullbatch.training.summary import CLOSING, summarize
from fullbatch.training.tables import add_run
from fullbatch.training.trainer import Observer, Probes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A run that is ready to start or to continue.

    Args:
        run: its settings.
        tree: the configuration that they were made from.
        identity: with the seed, even if it was drawn.
        paths: where it writes.
        training: its state, step and plan.
        probes: what measures it.
        group: the processes that share it.
        parent: path, step and digest of the checkpoint that it was forked from.
    """

    run: Run
    tree: dict[str, Any]
    identity: RunIdentity
    paths: RunPaths
    training: Training
    probes: Probes
    group: Group = ALONE
    parent: dict[str, Any] | None = None

    @property
    def seed(self) -> int:
        """The seed, given or drawn."""
        assert self.identity.seed is not None
        return self.identity.seed


def log_start(job: Job) -> None:
    """Describe the run in the log and in files of its folder."""
    run, training = job.run, job.training
    state = training.state
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    optimizer, wrapper = (
        ", ".join(
            f"{key} {value}"
            for key, value in job.tree["hyp"][group].items()
            if key != "name" and value not in (None, {})
        )
        for group in ("optim", "optim_modification")
    )
    wrapped = f"; in {run.hyp.optim_modification.name.upper()}: {wrapper}" if wrapper else ""
    mode = "stochastic" if training.plan.stochastic(state.step) else "full batch"
    log.info("run folder %s", job.paths.folder)
    log.info("%s, seed %d", describe(device_of(state.model)), job.seed)
    log.info("model %s, %s parameters", _model_name(run), f"{parameters:,}")
    log.info("%s, optimizer %s: %s%s", mode, run.hyp.optim.name, optimizer, wrapped)
    warn_about(run)
    settings = to_yaml({**job.tree, "seed": job.seed})
    write_atomically(job.paths.folder / "config.yaml", settings.encode())
    identity = replace(job.identity, seed=run.seed)  # as in the ledger, before the seed is drawn
    write_record(job.paths.folder, identity.job, job.parent)


def warn_about(run: Run) -> None:
    """Log a warning for each setting that the length of the run leaves without effect."""
    hyp, lr = run.hyp, run.hyp.optim.lr
    with about("hyp.scheduler"):
        schedule = schedule_named(hyp.scheduler, hyp.steps, hyp.warmup)
    last, length = hyp.steps - 1, f"hyp.steps={hyp.steps}"
    peak = max(schedule(min(step, last)) for step in (hyp.warmup, hyp.warmup + 1))  # no schedule rises later
    settings = f"hyp.warmup={hyp.warmup} hyp.scheduler={hyp.scheduler} {length}"
    if peak < 1:
        advice = "take more steps or a shorter warm-up"
        largest = f"{peak:.3g} times that given" if lr is None else f"{lr * peak:.3g}, with hyp.optim.lr={lr:g}"
        log.warning("%s: the learning rate never exceeds %s; %s", settings, largest, advice)
    if schedule(last) == schedule(last - 1) == 0 < peak:
        log.warning("%s: the learning rate is 0 in the last steps, which train nothing", settings)
    if hyp.train_switch_stochastic is not None and hyp.train_switch_stochastic > last:
        log.warning("hyp.train_switch_stochastic=%d %s: the mode never changes", hyp.train_switch_stochastic, length)


def open_loggers(job: Job) -> AbstractContextManager[list[Observer]]:
    """Return a context that opens the loggers of the run; a dry run has none."""
    settings = {**flatten(job.tree), "seed": job.seed}
    description = RunDescription(job.run.name, job.identity.job, job.paths.folder, settings)
    return start_loggers(() if job.run.dryrun else job.run.impl.logger, description, job.training.state.rows)


def summary(job: Job) -> dict[str, Any]:
    """Return the results of the run so far; without its speed, and with a warning, where that cannot be measured."""
    run, training = job.run, job.training
    closing = summarize(training.state.rows, warmup=run.hyp.warmup, window=run.impl.validate_every_nth_step)
    precision = training.problem.arithmetic.matmul_dtype
    try:
        return {**closing, **speed(training.step, precision, processes=job.group.size)}
    except Exception as error:  # of the counter of operations, for a user's model, or of a device without memory
        log.warning("the speed of the run is not measured: %s", format_error(error) or type(error).__name__)
        log.debug("where it happened", exc_info=error)
        return closing


def run_row(job: Job, result: Mapping[str, Any], diverged: DivergedError | None = None) -> dict[str, Any]:
    """Return the row of the run, with its ``summary``, in the table of runs."""
    run = job.run
    return {
        "name": run.name,
        "status": f"diverged: {diverged}" if diverged else reason_of_end(job),
        "model": _model_name(run),
        "optimizer": run.hyp.optim.name,
        "stoch": run.hyp.train_stochastic,
        "augmentations": bool(run.data.augmentations_train),
        **dict.fromkeys(CLOSING, ""),  # a run that diverged early has only some of these columns; tables have them all
        **result,
        "size": run.data.size,
        "batch_size": run.data.batch_size,
        **flatten(job.tree["hyp"]),
        "seed": job.seed,
        **({} if job.parent is None else {"parent": job.parent["path"], "parent_step": job.parent["step"]}),
        "configuration": job.identity.configuration,
        "folder": str(job.paths.folder),
    }


def record_row(
    job: Job, result: Mapping[str, Any], diverged: DivergedError | None = None, *, unless: Sequence[str] = ()
) -> None:
    """Add the row of the run to the table of runs; if that fails, to a table of this name in the run folder.

    A warning says so; the run does not fail. Without any table, the row is in the log.
    """
    row, name = run_row(job, result, diverged), job.paths.table.name
    for path in (job.paths.table, job.paths.folder / name):
        try:
            add_run(path, row, unless=unless)
        except (ValueError, OSError, csv.Error, InterruptedWork) as error:
            log.warning("%s: without the row of this run (%s)", path, format_error(error))
        else:
            if path != job.paths.table:
                log.warning("the row of this run is in %s", path)
            return
    log.error("the row of this run: %s", json.dumps(row, default=str))


def reason_of_end(job: Job) -> str:
    """Return why a run that is done ended."""
    return job.training.state.stopped or f"all {job.training.plan.steps} steps are taken"


def display_name(run: Run) -> str:
    """Return the title of a run's result."""
    return f"{run.name}: {_model_name(run)} on {run.data.name}"


def describe_progress(state: TrainState) -> str:
    """Return how far a run is."""
    if state.inside is None:
        return f"after step {state.step}"
    segments = [segment for part in state.inside["parts"] for segment in part["segments"]]
    done = sum(segment["position"] - segment["start"] for segment in segments)
    number = len(state.inside["finished"]) + 1
    blocks = max((segment["stop"] for segment in segments), default=0)
    return f"inside step {state.step + 1} (pass {number}, {done} of {blocks} blocks)"


def _model_name(run: Run) -> str:
    model = run.model
    return getattr(model, "target", None) or f"{getattr(model, 'name', '')}{getattr(model, 'depth', '')}"
