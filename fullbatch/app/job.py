"""A run that is ready to start or to continue, and what is said about it."""

import json
import logging
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fullbatch.app.ledger_entry import configuration_hash, content_hash
from fullbatch.app.provenance import provenance
from fullbatch.build.trainer import Training
from fullbatch.runtime.device import describe
from fullbatch.runtime.process_group import ALONE, Group
from fullbatch.settings import Run
from fullbatch.settings.parse import flat, to_yaml
from fullbatch.tensors import device_of
from fullbatch.training.cost import speed
from fullbatch.training.loggers import Described, recording
from fullbatch.training.state import TrainState
from fullbatch.training.step import DivergedError
from fullbatch.training.summary import CLOSING, summarize
from fullbatch.training.trainer import Observer, Probes

log = logging.getLogger(__name__)

NO_MATTER = {"data": ("caching", "download", "mirrors"), "hyp": ("steps",)}
"""Keys that a run may change and still continue from its checkpoint, beside all that are not data, model or hyp."""


@dataclass(frozen=True)
class RunPaths:
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
    places: RunPaths
    training: Training
    probes: Probes
    group: Group = ALONE


def identity(tree: dict[str, Any]) -> dict[str, Any]:
    """Return what determines the numbers of a run: a checkpoint belongs to these."""
    return {
        group: {key: value for key, value in tree[group].items() if key not in NO_MATTER.get(group, ())}
        for group in ("data", "model", "hyp")
    }


def announce(job: Job) -> None:
    """Say what the run is, in the log and in files of its folder."""
    run, training = job.run, job.training
    state = training.state
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    settings, wrapper = (_listed(job.tree["hyp"][group]) for group in ("optim", "optim_modification"))
    around = f"; in {run.hyp.optim_modification.name.upper()}: {wrapper}" if wrapper else ""
    mode = "stochastic" if training.plan.stochastic(state.step) else "full batch"
    log.info("run folder %s", job.places.folder)
    log.info("%s, seed %d", describe(device_of(state.model)), job.seed)
    log.info("model %s, %s parameters", _model_name(run), f"{parameters:,}")
    log.info("%s, optimizer %s: %s%s", mode, run.hyp.optim.name, settings, around)
    (job.places.folder / "config.yaml").write_text(to_yaml({**job.tree, "seed": job.seed}), encoding="utf-8")
    (job.places.folder / "run.json").write_text(json.dumps(provenance(), indent=2) + "\n", encoding="utf-8")


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if key != "name")


def how_it_ended(job: Job) -> str:
    """Say why a run that is done is."""
    return job.training.state.stopped or f"all {job.training.plan.steps} steps are taken"


def _model_name(run: Run) -> str:
    model = run.model
    return getattr(model, "target", None) or f"{getattr(model, 'name', '')}{getattr(model, 'depth', '')}"


def summary(job: Job) -> dict[str, Any]:
    """Return what the run came to."""
    run, training = job.run, job.training
    precision = training.problem.arithmetic.matmul_dtype
    closing = summarize(training.state.rows, warmup=run.hyp.warmup, window=run.impl.validate_every_nth_step)
    return {**closing, **speed(training.step, precision, processes=job.group.size)}


def logging_of(job: Job) -> AbstractContextManager[list[Observer]]:
    """Return the loggers of the run, to be opened; a dry run, which leaves nothing, has none."""
    run = job.run
    hashed = content_hash([configuration_hash(run, identity(asdict(run))), run.name, job.seed])
    described = Described(run.name, hashed, job.places.folder, {**flat(job.tree), "seed": job.seed})
    return recording(() if run.dryrun else run.impl.logger, described, job.training.state.rows)


def run_row(job: Job, diverged: DivergedError | None) -> dict[str, Any]:
    """Return the row of the table of runs."""
    run = job.run
    return {
        "name": run.name,
        "status": f"diverged: {diverged}" if diverged else how_it_ended(job),
        "model": _model_name(run),
        "optimizer": run.hyp.optim.name,
        "stoch": run.hyp.train_stochastic,
        "augmentations": bool(run.data.augmentations_train),
        **dict.fromkeys(CLOSING, ""),  # a run that diverged early has some columns alone; tables have them all
        **summary(job),
        "size": run.data.size,
        "batch_size": run.data.batch_size,
        **flat(job.tree["hyp"]),
        "seed": job.seed,
        "configuration": configuration_hash(run, identity(asdict(run))),
        "folder": str(job.places.folder),
    }


def title(run: Run) -> str:
    """Return the title of a run's result."""
    return f"{run.name}: {_model_name(run)} on {run.data.name}"


def where(state: TrainState) -> str:
    """Say where a state is in its run."""
    if state.inside is None:
        return f"after step {state.step}"
    segments = [segment for part in state.inside["parts"] for segment in part["segments"]]
    done = sum(segment["position"] - segment["start"] for segment in segments)
    number = len(state.inside["finished"]) + 1
    blocks = max((segment["stop"] for segment in segments), default=0)
    return f"inside step {state.step + 1} (pass {number}, {done} of {blocks} blocks)"
