"""Builds a run, and continues it from its checkpoint."""

import json
import logging
import secrets
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fullbatch.app.identity import RunIdentity
from fullbatch.app.job import Job, describe_progress, log_start
from fullbatch.app.paths import RunPaths
from fullbatch.app.processes import require_equal_settings
from fullbatch.app.resume import keep_foreign, read_matching, read_parent
from fullbatch.build.data import Stream, about
from fullbatch.build.probes import build_probes
from fullbatch.build.trainer import build_training
from fullbatch.models.model_file import StoredModel, read_model
from fullbatch.runtime.process_group import Group
from fullbatch.runtime.stop_requests import StopRequests
from fullbatch.settings import Run
from fullbatch.settings.impl import Distributed
from fullbatch.training.checkpoint import is_path, resume_from, set_damaged_aside

log = logging.getLogger(__name__)


def prepare(
    run: Run, tree: dict[str, Any], identity: RunIdentity, paths: RunPaths, group: Group, requests: StopRequests
) -> Job:
    """Build the run and load its checkpoint, if there is one; ``ValueError`` and ``OSError`` for mistakes.

    Only the main process reads files of checkpoints and draws a seed.
    """
    impl = run.impl
    if isinstance(impl.setup, Distributed):
        torch.multiprocessing.set_sharing_strategy(impl.setup.strategy)
    require_equal_settings(tree, group)
    saved, stored, seed, forks = _share_checkpoint(identity, paths, impl.checkpoint.fork_from, group)
    parent: dict[str, Any] | None = None if stored is None else stored.checkpoint.get("parent")
    torch.manual_seed(Stream.GLOBAL.seed(seed))
    if saved is None and group.is_main and impl.checkpoint.name is not None and is_path(impl.checkpoint.name):
        log.info("%s: there is no such file yet; the run begins, and its checkpoints go there", paths.checkpoint)
    with group.raise_together():
        training = build_training(run, seed, group, requests)
        if saved is not None and stored is not None:
            with about(str(saved)):
                resume_from(training.state, stored, fork=forks)
            if forks:
                require_steps(run.hyp.steps, training.state.step)
                parent = {"path": str(saved), "step": training.state.step, "digest": identity.parent}
            elif group.is_main:
                set_damaged_aside(paths.checkpoint, saved)
                if not stored.checkpoint:
                    keep_foreign(saved, stored)
            verb = "forking" if forks else "continuing"
            log.info("%s %s from %s", verb, describe_progress(training.state), saved)
        if impl.check_determinism and not training.is_done:
            training.check_determinism()
        probes = build_probes(training, paths.folder if group.is_main else None)
    job = Job(run, tree, replace(identity, seed=seed), paths, training, probes, group, parent)
    if group.is_main:
        log_start(job)
    return job


def require_steps(steps: int, taken: int) -> None:
    """Raise ``ValueError`` where a fork has no step left to take."""
    if steps <= taken:
        raise ValueError(f"hyp.steps={steps}: the checkpoint that is forked has {taken} steps; use a larger number")


def _share_checkpoint(
    identity: RunIdentity, paths: RunPaths, parent: str | None, group: Group
) -> tuple[Path | None, StoredModel | None, int, bool]:
    """Return the checkpoint's file, its content, the seed of the run, and whether the checkpoint is that of ``parent``.

    The seed is drawn where nothing gives it. A run that has a checkpoint of its own continues from that. The main
    process reads the file; the others receive its bytes, and read a copy.
    """
    saved, stored, content, seed, forks = None, None, b"", identity.seed, False
    if group.is_main:
        saved, stored = read_matching(paths.checkpoint, identity) or (None, None)
        forks = saved is None and parent is not None
        if forks and parent is not None:
            saved, stored = read_parent(parent)
        content = b"" if saved is None or group.size == 1 else saved.read_bytes()
        if stored is not None and stored.checkpoint and (seed is None or not forks):
            seed = int(stored.checkpoint["seed"])
        seed = secrets.randbits(31) if seed is None else seed
    name, seed, forks = json.loads(group.broadcast(json.dumps([saved and str(saved), seed, forks]).encode()))
    content = group.broadcast(content)
    if name is not None and not group.is_main:
        saved = Path(name)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / saved.name
            copy.write_bytes(content)
            stored = read_model(copy)
    return saved, stored, int(seed), forks
