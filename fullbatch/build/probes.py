"""From the settings of the analysis to probes and their output files."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fullbatch.analysis.gradient_statistics import gradient_curvature, sample_gradient_norms
from fullbatch.analysis.measurements import (
    FlatnessProbe,
    GradientProbe,
    ParameterNorm,
    SampleGradients,
    WorstCase,
)
from fullbatch.analysis.operators import MATRICES
from fullbatch.analysis.outputs import Notes, SavedModels, write_columns
from fullbatch.analysis.probes import Note, Observation, Probe, ProbeSchedule
from fullbatch.analysis.sharpness_probe import SharpnessProbe
from fullbatch.analysis.stability import has_threshold
from fullbatch.build.data import Stream, about
from fullbatch.build.trainer import Training
from fullbatch.build.user_code import build_probes as build_user_probes
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.settings import Analysis, Run
from fullbatch.tensors import mode, trainable
from fullbatch.training.state import TrainState
from fullbatch.training.trainer import Trainer

log = logging.getLogger(__name__)

SPREAD = ("snr", "noise_scale")
"""The statistics that need at least two sub-batches."""


def build_probes(training: Training, folder: Path | None) -> ProbeSchedule:
    """Build the probes of a run, whose files go into ``folder``; ``ValueError`` for what cannot be measured.

    Each process measures on all the data, with the same results. ``folder`` is None for all processes but rank 0.
    """
    run, seed = training.problem.run, Stream.ANALYSIS.seed(training.problem.seed)
    settings = run.analysis
    _require_measurable(run, training)
    every = settings.check_every_nth_step
    scheduled: list[tuple[int, Probe]] = [(every, probe) for probe in _statistics(settings, seed)]
    if settings.sharpness.every is not None:
        scheduled.append((settings.sharpness.every, _sharpness(settings, training, seed)))
    if folder is None:
        return ProbeSchedule(partial(observe, training), scheduled)
    if settings.save_model_every_nth_step is not None:
        scheduled.append((settings.save_model_every_nth_step, SavedModels(folder / "models")))
    notes = Notes(folder / f"table_{run.name}_analysis.csv", training.state.step)
    probes = ProbeSchedule(partial(observe, training), scheduled, notes)
    if probes.columns:
        write_columns(folder / f"analysis_{run.name}.json", probes.columns)
    return probes


def _statistics(settings: Analysis, seed: int) -> Iterator[Probe]:
    if settings.measure_param_norm:
        yield ParameterNorm()
    if parts := _parts(settings):
        yield GradientProbe(parts, settings.internal_batch_size_chunks)
    if settings.sample_gradient_norms is not None:
        yield SampleGradients(settings.sample_gradient_norms == "train")
    if settings.compute_flatness:
        yield FlatnessProbe(
            settings.flatness_step_size,
            settings.flatness_threshold,
            settings.flatness_norm,
            settings.flatness_directions,
            settings.flatness_max_steps,
            seed,
        )
    if settings.compute_worst_case:
        yield WorstCase(settings.worst_case_rho, settings.worst_case_m)
    yield from build_user_probes(settings.probes)


def _parts(settings: Analysis) -> frozenset[str]:
    table = {
        "gradient": settings.measure_grad_norm,
        "momentum": settings.check_momentum,
        "snr": settings.compute_gradient_SNR,
        "noise_scale": settings.compute_gradient_noise_scale,
        "curvature": settings.compute_gradient_curvature,
        "sub_batches": settings.record_gradient_norm_per_batch,
    }
    return frozenset(name for name, requested in table.items() if requested)


def _sharpness(settings: Analysis, training: Training, seed: int) -> SharpnessProbe:
    optimizer, sharpness = training.state.optimizer, settings.sharpness
    if not has_threshold(optimizer):
        log.info("analysis: no threshold of stability is known for %s as it is set up", type(optimizer).__name__)
    if training.step.objective.regularizer is not None:
        log.info("analysis: the sharpness is that of the loss; the gradient regularizer is no part of it")
    return SharpnessProbe(
        top_k=sharpness.top_k,
        tolerance=sharpness.tolerance,
        max_matvecs=sharpness.max_matvecs,
        matrix=sharpness.matrix,
        trace_matvecs=sharpness.trace_matvecs,
        density_vectors=sharpness.density_vectors,
        density_steps=sharpness.density_steps,
        seed=seed,
    )


def _require_measurable(run: Run, training: Training) -> None:
    settings, step = run.analysis, training.step
    size = sum(p.numel() for p in trainable(training.state.model))
    top_k = settings.sharpness.top_k
    if settings.sharpness.every is not None and top_k > size:
        raise ValueError(f"analysis.sharpness.top_k={top_k}: the model has {size} parameters, and as many eigenvalues")
    _try_derivatives(settings, training)
    if _parts(settings) & {*SPREAD} and not run.dryrun:
        objective, chunks = step.objective_at(0), settings.internal_batch_size_chunks
        if objective.num_sub_batches(chunks) < 2:
            raise ValueError(
                f"analysis.internal_batch_size_chunks={chunks}: the data are one sub-batch, and SNR and noise scale "
                "need two; accepted: a larger number, a smaller data.batch_size or hyp.sub_batch"
            )
    groups = training.state.optimizer.param_groups
    if settings.check_momentum and not any("betas" in group or group.get("momentum") for group in groups):
        log.info("analysis.check_momentum: the optimizer keeps no momentum; nothing is recorded")


def _try_derivatives(settings: Analysis, training: Training) -> None:
    """Raise ``ValueError`` for derivatives that the model does not have: computes them once, on a sub-batch."""
    model, objective = training.state.model, training.step.objective_at(0).plain()
    trials: dict[str, Callable[[FullBatchObjective, list[Tensor]], object]] = {}
    if settings.sharpness.every is not None:
        trials["sharpness.matrix"] = MATRICES[settings.sharpness.matrix]
    if settings.compute_gradient_curvature:
        trials["compute_gradient_curvature"] = gradient_curvature
    if settings.sample_gradient_norms is not None:
        trials["sample_gradient_norms"] = lambda objective, _: sample_gradient_norms(objective)
    for key, trial in trials.items():
        training_mode = key != "sample_gradient_norms" or settings.sample_gradient_norms == "train"
        with about(f"analysis.{key}"), mode(model, training=training_mode):
            trial(objective.over([next(objective.sub_batches())]), [torch.ones_like(p) for p in trainable(model)])


def observe(training: Training | Trainer, state: TrainState, note: Note) -> Observation:
    """Return the observation of the last step for the probes."""
    step, number = training.step, state.step - 1
    stochastic = training.plan.stochastic(number)

    def batches() -> Iterator[FullBatchObjective]:
        return (batch.plain() for batch in step.objectives_at(number, stochastic=stochastic))

    return Observation(
        step=state.step,
        model=state.model,
        optimizer=state.optimizer,
        objective=step.objective_at(number).plain(),
        batches=batches,
        stochastic=stochastic,
        memory=state.memory,
        note=note,
    )
