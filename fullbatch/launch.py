"""One job from configuration to exit status: its folder, its checkpoint, its tables."""

import json
import logging
import platform
import secrets
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fullbatch import __version__
from fullbatch.build import build_precision, build_trainer, check_determinism, set_up_machine
from fullbatch.build_data import about
from fullbatch.config import plain, settings_of, to_yaml
from fullbatch.data.reading import workers_told
from fullbatch.plan import print_plan
from fullbatch.restore import checkpoint_path, keep_foreign, matching
from fullbatch.runtime.device import DTYPES, describe
from fullbatch.runtime.files import claimed, require_writable, told
from fullbatch.runtime.interruption import InterruptedWork, Interruption, interruption
from fullbatch.runtime.logs import ProgressBar, job_log
from fullbatch.settings import Run
from fullbatch.tensors import device_of
from fullbatch.training.checkpoint import find_checkpoint, save_checkpoint
from fullbatch.training.cost import speed
from fullbatch.training.curves import draw_curves
from fullbatch.training.recorder import ConvergenceTable, add_run
from fullbatch.training.steps import DivergedError
from fullbatch.training.stored_models import resume_from
from fullbatch.training.summary import summarize
from fullbatch.training.trainer import Trainer

log = logging.getLogger(__name__)

DONE, MISTAKE, DIVERGED = 0, 2, 3
NO_MATTER = {"data": ("caching", "download", "mirrors"), "hyp": ("steps",)}
"""Keys that a run may change and still continue from its checkpoint, beside all that are not data, model or hyp."""


@dataclass(frozen=True)
class Places:
    """Where a run leaves what it leaves."""

    folder: Path
    checkpoint: Path
    table: Path


@dataclass(frozen=True)
class Job:
    """A run that is ready to start or to continue."""

    run: Run
    tree: dict[str, Any]
    seed: int
    places: Places
    trainer: Trainer


def run_job(cfg: DictConfig) -> int:
    """Run one job; return 0, 2 for a mistake or a file system's refusal, 3 for divergence, 128 + n for signal n."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with ExitStack() as stack:
        terminal = stack.enter_context(job_log(folder / "log.txt"))
        interrupted = stack.enter_context(interruption())
        try:
            tree = plain(cfg)
            run = settings_of(tree)
            if run.plan:
                print_plan(run, terminal.out)
                return DONE
            if run.dryrun:  # every file goes where it does not stay
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            places = _places(run, folder)
            for path in (places.checkpoint, places.table):
                require_writable(path)
            if run.impl.checkpoint.name is not None:
                stack.enter_context(claimed(places.checkpoint))
            with workers_told():
                job = prepare(run, tree, places)
        except InterruptedWork as error:
            log.warning("%s", error)
            return interrupted.exit_status
        except (ValueError, OSError) as error:
            return mistake(error)
        try:
            with workers_told():
                return execute(job, interrupted, terminal.out)
        except (ValueError, OSError) as error:
            return mistake(error, f"; the last checkpoint is {find_checkpoint(places.checkpoint) or 'none'}")


def prepare(run: Run, tree: dict[str, Any], places: Places) -> Job:
    """Build the run, and continue it where its checkpoint is; ``ValueError`` and ``OSError`` for mistakes."""
    set_up_machine(run)
    saved = find_checkpoint(places.checkpoint)
    stored = None if saved is None else matching(saved, _identity(tree), run.seed)
    seed = int(stored.checkpoint["seed"]) if stored and stored.checkpoint else _seed(run)
    trainer = build_trainer(run, seed)
    if saved is not None and stored is not None:
        with about(str(saved)):
            resume_from(trainer.state, stored)
        if not stored.checkpoint:
            keep_foreign(saved, stored)
        log.info("continuing after step %d from %s", trainer.state.step, saved)
    if run.impl.check_determinism and not trainer.done:
        check_determinism(trainer)
    job = Job(run, tree, seed, places, trainer)
    _announce(job)
    return job


def execute(job: Job, interrupted: Interruption, console: Console) -> int:
    """Train, record, and say how it ended; return the exit status."""
    trainer, state = job.trainer, job.trainer.state
    if trainer.done:
        log.info("this run has finished before (%s); its result:", _how_it_ended(job))
        trainer.validate_last()
        _show(job, console)
        return DONE
    trainer.interrupted = lambda: bool(interrupted)
    trainer.save = lambda: save_checkpoint(
        job.places.checkpoint,
        state.state_dict(),
        config=_identity(job.tree),
        seed=job.seed,
        command=sys.argv,
        keep=job.run.impl.checkpoint.keep,
    )
    table = ConvergenceTable(
        job.places.folder / f"table_{job.run.name}_convergence_results.csv", [dict(row) for row in state.rows]
    )
    diverged: DivergedError | None = None
    with ProgressBar(console, trainer.steps, state.step) as bar:
        trainer.observers = [table.append, bar]
        try:
            trainer.run()
        except DivergedError as error:
            diverged = error
    if state.rows:
        draw_curves(state.rows, job.places.folder / f"curves_{job.run.name}.png", job.run.name)
    if not trainer.done and diverged is None:
        log.warning("paused after step %d; the checkpoint is %s", state.step, job.places.checkpoint)
        return interrupted.exit_status
    add_run(job.places.table, _run_row(job, diverged))
    if diverged is not None:
        kept = find_checkpoint(job.places.checkpoint)
        log.error("%s; the last good checkpoint is %s", diverged, kept or "none, the first step diverged")
        return DIVERGED
    log.info("done: %s", _how_it_ended(job))
    _show(job, console)
    return DONE


def mistake(error: ValueError | OSError, more: str = "") -> int:
    """Say what was wrong, in the log also where, and return the exit status."""
    log.error("%s%s", told(error) if isinstance(error, OSError) else error, more)
    log.debug("where it happened", exc_info=error)
    return MISTAKE


def _places(run: Run, folder: Path) -> Places:
    table = f"table_fb_{run.data.name}_runs.csv"
    if run.dryrun:
        return Places(folder, folder / "checkpoint.pth", folder / table)
    name = run.impl.checkpoint.name
    checkpoint = folder / "checkpoint.pth" if name is None else checkpoint_path(name)
    return Places(folder, checkpoint, Path("tables") / table)


def _seed(run: Run) -> int:
    return secrets.randbits(31) if run.seed is None else run.seed


def _identity(tree: dict[str, Any]) -> dict[str, Any]:
    """Return what determines the numbers of a run: a checkpoint belongs to these."""
    return {
        group: {key: value for key, value in tree[group].items() if key not in NO_MATTER.get(group, ())}
        for group in ("data", "model", "hyp")
    }


def _announce(job: Job) -> None:
    run, trainer = job.run, job.trainer
    state = trainer.state
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    settings, wrapper = (_listed(job.tree["hyp"][group]) for group in ("optim", "optim_modification"))
    around = f"; in {run.hyp.optim_modification.name.upper()}: {wrapper}" if wrapper else ""
    mode = "stochastic" if trainer.stochastic(state.step) else "full batch"
    log.info("run folder %s", job.places.folder)
    log.info("%s, seed %d", describe(device_of(state.model)), job.seed)
    log.info("model %s, %s parameters", _model_name(run), f"{parameters:,}")
    log.info("%s, optimizer %s: %s%s", mode, run.hyp.optim.name, settings, around)
    (job.places.folder / "config.yaml").write_text(to_yaml({**job.tree, "seed": job.seed}), encoding="utf-8")
    (job.places.folder / "run.json").write_text(json.dumps(_provenance(), indent=2) + "\n", encoding="utf-8")


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if key != "name")


def _provenance() -> dict[str, Any]:
    return {
        "command": sys.argv,
        "git_revision": _git_revision(),
        "fullbatch": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.platform(),
    }


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # not a git checkout, or no git


def _how_it_ended(job: Job) -> str:
    return job.trainer.state.stopped or f"all {job.trainer.steps} steps are taken"


def _model_name(run: Run) -> str:
    model = run.model
    return getattr(model, "target", None) or f"{getattr(model, 'name', '')}{getattr(model, 'depth', '')}"


def _summary(job: Job) -> dict[str, Any]:
    run, trainer = job.run, job.trainer
    precision = build_precision(run, device_of(trainer.state.model)) or DTYPES[run.impl.dtype]
    closing = summarize(trainer.state.rows, warmup=run.hyp.warmup, window=run.impl.validate_every_nth_step)
    return {**closing, **speed(trainer, precision)}


def _run_row(job: Job, diverged: DivergedError | None) -> dict[str, Any]:
    run = job.run
    return {
        "name": run.name,
        "status": f"diverged: {diverged}" if diverged else _how_it_ended(job),
        "model": _model_name(run),
        "optimizer": run.hyp.optim.name,
        "stoch": run.hyp.train_stochastic,
        "augmentations": bool(run.data.augmentations_train),
        **_summary(job),
        "batch_size": run.data.batch_size,
        **_flat(job.tree["hyp"]),
        "seed": job.seed,
        "folder": str(job.places.folder),
    }


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _show(job: Job, console: Console) -> None:
    table = Table(title=f"{job.run.name}: {_model_name(job.run)} on {job.run.data.name}", show_header=False)
    for key, value in _summary(job).items():
        percent = key.endswith(("acc", "share")) or key.startswith("valid_acc")
        table.add_row(key, f"{value:.2%}" if percent else f"{value:.5g}")
    console.print(table)
