"""Builds a run, and continues it from its checkpoint."""

import logging
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fullbatch.app.identity import RunIdentity
from fullbatch.app.job import Job, describe_progress, log_start
from fullbatch.app.paths import RunPaths
from fullbatch.app.resume import keep_foreign, read_matching
from fullbatch.build.data import Stream, about
from fullbatch.build.probes import build_probes
from fullbatch.build.trainer import build_training
from fullbatch.models.model_file import StoredModel
from fullbatch.runtime.process_group import Group
from fullbatch.runtime.stop_requests import StopRequests
from fullbatch.settings import Run
from fullbatch.settings.impl import Distributed
from fullbatch.training.checkpoint import resume_from, set_damaged_aside

log = logging.getLogger(__name__)


def prepare(
    run: Run, tree: dict[str, Any], identity: RunIdentity, paths: RunPaths, group: Group, requests: StopRequests
) -> Job:
    """Build the run and load its checkpoint, if there is one; ``ValueError`` and ``OSError`` for mistakes.

    Only the main process reads checkpoints and draws a seed.
    """
    impl = run.impl
    if isinstance(impl.setup, Distributed):
        torch.multiprocessing.set_sharing_strategy(impl.setup.strategy)
    saved, stored, seed = group.broadcast(_read_checkpoint(identity, paths) if group.is_main else (None, None, 0))
    torch.manual_seed(Stream.GLOBAL.seed(seed))
    with group.raise_together():
        training = build_training(run, seed, group, requests)
        if saved is not None and stored is not None:
            with about(str(saved)):
                resume_from(training.state, stored)
            if group.is_main:
                set_damaged_aside(paths.checkpoint, saved)
                if not stored.checkpoint:
                    keep_foreign(saved, stored)
            log.info("continuing %s from %s", describe_progress(training.state), saved)
        if impl.check_determinism and not training.is_done:
            training.check_determinism()
        probes = build_probes(training, paths.folder if group.is_main else None)
    job = Job(run, tree, replace(identity, seed=seed), paths, training, probes, group)
    if group.is_main:
        log_start(job)
    return job


def _read_checkpoint(identity: RunIdentity, paths: RunPaths) -> tuple[Path | None, StoredModel | None, int]:
    """Return the checkpoint's file, its content, and the seed of the run, which is drawn where nothing gives it."""
    saved, stored = read_matching(paths.checkpoint, identity) or (None, None)
    if stored is not None and stored.checkpoint:
        return saved, stored, int(stored.checkpoint["seed"])
    return saved, stored, secrets.randbits(31) if identity.seed is None else identity.seed
