"""One job from configuration to exit status: its folder, its checkpoint, its tables."""

import logging
import secrets
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from fullbatch.analysis.figure import draw_edge_of_stability
from fullbatch.app.hydra_cli import typed
from fullbatch.app.job import (
    Job,
    RunPaths,
    announce,
    how_it_ended,
    identity,
    logging_of,
    run_row,
    summary,
    title,
    where,
)
from fullbatch.app.ledger_entry import CHECKPOINT, LEDGER, LedgerEntry, enter, settled, show
from fullbatch.app.plan import print_plan
from fullbatch.app.processes import launch_from, leading, local_processes
from fullbatch.app.resume import checkpoint_path, keep_foreign, matching
from fullbatch.build.data import Stream, about
from fullbatch.build.precision import overflow_advice
from fullbatch.build.probes import build_probes
from fullbatch.build.trainer import build_training
from fullbatch.data.reading import translate_worker_errors
from fullbatch.models.model_file import StoredModel
from fullbatch.results.curves import draw_curves
from fullbatch.results.ledger import State
from fullbatch.runtime.files import format_error, require_writable
from fullbatch.runtime.locks import claimed
from fullbatch.runtime.logs import ProgressBar, job_log
from fullbatch.runtime.peer_monitor import PeerLostError
from fullbatch.runtime.process_group import ALONE, Group
from fullbatch.runtime.ranks import Launch
from fullbatch.runtime.stop_requests import InterruptedWork, Interruption, StopRequests, interruption
from fullbatch.settings import Run
from fullbatch.settings.impl import Distributed
from fullbatch.settings.parse import plain, settings_of
from fullbatch.training.checkpoint import find_checkpoint, resume_from, save_checkpoint
from fullbatch.training.loggers import require_loggers
from fullbatch.training.step import DivergedError
from fullbatch.training.tables import ConvergenceTable, add_run
from fullbatch.training.trainer import validate_last

log = logging.getLogger(__name__)

DONE, MISTAKE, DIVERGED = 0, 2, 3


def run_job(cfg: DictConfig) -> int:
    """Run one job with all of its processes; return the exit status.

    0, 2 for a mistake or a file system's refusal, 3 for divergence, 4 for a lost process, 128 + n for signal n.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    problem: Exception | None = None
    try:
        tree = plain(cfg)
        run = settings_of(tree)
        launch = launch_from(run.impl)
        if not launch.leads:
            return DONE if run.plan else _follow(run, launch, folder)
    except (ValueError, OSError) as error:
        problem = error
    with ExitStack() as stack:
        terminal = stack.enter_context(job_log(folder / "log.txt"))
        caught = stack.enter_context(interruption())
        try:
            if problem is not None:
                raise problem
            if run.plan:
                return _planned(run, caught, terminal.out)
            if run.dryrun:  # every file goes where it does not stay
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            group = stack.enter_context(leading(launch, run.impl, tree, folder))
        except (ValueError, OSError) as error:
            return mistake(error)
        except PeerLostError as error:
            return lost(error)
        group.ending.status = _lead(run, tree, folder, group, caught, terminal.out)
        return group.ending.status


def _planned(run: Run, caught: Interruption, console: Console) -> int:
    try:
        with translate_worker_errors():
            print_plan(run, console)
    except InterruptedWork as error:
        log.warning("%s", error)
        return caught.exit_status
    except DivergedError as error:
        log.error("no plan, as the step that was tried diverged: %s", error)
        return DIVERGED
    return DONE


def _follow(run: Run, launch: Launch, folder: Path) -> int:
    from fullbatch.app.worker import follow  # noqa: PLC0415 (imports this module)

    status = follow(launch, launch.given, local_processes(run.impl))
    with suppress(OSError):
        folder.rmdir()  # Hydra's, empty unless it is that of the process of rank 0, too
    return status or DONE


def _lead(run: Run, tree: dict[str, Any], folder: Path, group: Group, caught: Interruption, console: Console) -> int:
    places, started = _places(run, folder), False
    wishes = StopRequests(caught, group, run.impl.checkpoint.max_minutes)
    with ExitStack() as stack:
        try:
            for path in (places.checkpoint, places.table):
                require_writable(path)
            require_loggers(run.impl.logger)
            entry = stack.enter_context(enter(run, identity(asdict(run)), folder, places.table.with_name(LEDGER)))
            if entry.settled is not None:
                return settled(entry.settled, title(run), console)
            if run.impl.checkpoint.name is not None:
                stack.enter_context(claimed(places.checkpoint))
            with translate_worker_errors():
                job = prepare(run, tree, places, group, wishes)
                entry.start()
                started = True
                return execute(job, entry, wishes, console)
        except InterruptedWork as error:
            log.warning("%s", error)
            entry.end(State.INTERRUPTED, str(error))
            return caught.exit_status
        except (ValueError, OSError, PeerLostError) as error:
            kept = f"; the last checkpoint is {find_checkpoint(places.checkpoint) or 'none'}" if started else ""
            return lost(error, kept) if isinstance(error, PeerLostError) else mistake(error, kept)


def prepare(
    run: Run,
    tree: dict[str, Any],
    places: RunPaths,
    group: Group = ALONE,
    requests: StopRequests | None = None,
) -> Job:
    """Build the run, and continue it where its checkpoint is; ``ValueError`` and ``OSError`` for mistakes.

    Only the process of rank 0 looks at files of checkpoints, and draws a seed.
    """
    impl = run.impl
    if isinstance(impl.setup, Distributed):
        torch.multiprocessing.set_sharing_strategy(impl.setup.strategy)
    saved, stored, seed = group.broadcast(_found(run, tree, places) if group.leads else (None, None, 0))
    torch.manual_seed(Stream.GLOBAL.seed(seed))
    with group.agreeing():
        training = build_training(run, seed, group, requests)
        if saved is not None and stored is not None:
            with about(str(saved)):
                resume_from(training.state, stored)
            if not stored.checkpoint and group.leads:
                keep_foreign(saved, stored)
            log.info("continuing %s from %s", where(training.state), saved)
        if impl.check_determinism and not training.is_done:
            training.check_determinism()
        probes = build_probes(training, places.folder if group.leads else None)
    job = Job(run, tree, seed, places, training, probes, group)
    if group.leads:
        announce(job)
    return job


def _found(run: Run, tree: dict[str, Any], places: RunPaths) -> tuple[Path | None, StoredModel | None, int]:
    """Return the checkpoint's file, what is in it, and the seed."""
    saved = find_checkpoint(places.checkpoint)
    stored = None if saved is None else matching(saved, identity(tree), run.seed)
    return saved, stored, int(stored.checkpoint["seed"]) if stored and stored.checkpoint else _seed(run)


def assist(job: Job, wishes: StopRequests) -> int:
    """Take part in the training as another process than that of rank 0; return the exit status."""
    training = job.training
    if training.is_done:
        validate_last(training.state, training.validate)
        return DONE
    try:
        training.trainer(probes=job.probes, request=wishes.synchronize).run()
    except DivergedError:
        return DIVERGED
    return DONE if training.is_done else wishes.exit_status


def execute(job: Job, entry: LedgerEntry, wishes: StopRequests, console: Console) -> int:
    """Train, record, and say how it ended; return the exit status."""
    training, state = job.training, job.training.state
    if training.is_done:
        log.info("this run has finished before (%s); its result:", how_it_ended(job))
        validate_last(state, training.validate)
        if entry.cut_short:  # perhaps between the last checkpoint and the row
            add_run(job.places.table, run_row(job, None), unless=("name", "configuration", "seed"))
        return _finished(job, entry, console)
    table = ConvergenceTable(
        job.places.folder / f"table_{job.run.name}_convergence_results.csv", [dict(row) for row in state.rows]
    )
    diverged: DivergedError | None = None
    with logging_of(job) as loggers, ProgressBar(console, training.plan.steps, state.step) as bar:
        trainer = training.trainer(
            probes=job.probes,
            observers=[table.append, *loggers, bar],
            save=lambda: _save(job, wishes),
            request=wishes.synchronize,
        )
        try:
            trainer.run()
        except DivergedError as error:
            diverged = error
    if state.rows:
        draw_curves(state.rows, job.places.folder / f"curves_{job.run.name}.png", job.run.name)
        draw_edge_of_stability({job.run.name: state.rows}, job.places.folder / f"sharpness_{job.run.name}.png")
    if not training.is_done and diverged is None:
        log.warning("paused %s; the checkpoint is %s", where(state), job.places.checkpoint)
        entry.end(State.INTERRUPTED, f"paused {where(state)}")
        return wishes.exit_status
    add_run(job.places.table, run_row(job, diverged))
    if diverged is not None:
        kept = find_checkpoint(job.places.checkpoint)
        last_good = kept or "none, the first step diverged"
        log.error("%s%s; the last good checkpoint is %s", diverged, overflow_advice(job.run), last_good)
        entry.end(State.DIVERGED, str(diverged))
        return DIVERGED
    log.info("done: %s", how_it_ended(job))
    return _finished(job, entry, console)


def _finished(job: Job, entry: LedgerEntry, console: Console) -> int:
    entry.end(State.FINISHED, how_it_ended(job), summary(job))
    show(summary(job), title(job.run), console)
    return DONE


def _save(job: Job, wishes: StopRequests) -> None:
    save_checkpoint(
        job.places.checkpoint,
        job.training.state.state_dict(),
        config=identity(job.tree),
        seed=job.seed,
        command=typed(),
        keep=job.run.impl.checkpoint.keep,
    )
    wishes.saved()


def lost(error: PeerLostError, more: str = "") -> int:
    """Say that another process has ended before its time, and return the exit status."""
    log.error("%s%s", error, more)
    return error.status


def mistake(error: ValueError | OSError, more: str = "") -> int:
    """Say what was wrong, in the log also where, and return the exit status."""
    log.error("%s%s", format_error(error) if isinstance(error, OSError) else error, more)
    log.debug("where it happened", exc_info=error)
    return MISTAKE


def _places(run: Run, folder: Path) -> RunPaths:
    table = f"table_fb_{run.data.name}_runs.csv"
    if run.dryrun:
        return RunPaths(folder, folder / CHECKPOINT, folder / table)
    name = run.impl.checkpoint.name
    checkpoint = folder / CHECKPOINT if name is None else checkpoint_path(name)
    return RunPaths(folder, checkpoint, Path("tables") / table)


def _seed(run: Run) -> int:
    return secrets.randbits(31) if run.seed is None else run.seed
