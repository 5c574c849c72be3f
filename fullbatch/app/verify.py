"""Validation loss and accuracy of a checkpoint, measured again."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fullbatch.app.resume import restored
from fullbatch.app.train import DONE, mistake
from fullbatch.build.data import about
from fullbatch.build.trainer import build_training
from fullbatch.models.weights import load_weights
from fullbatch.runtime.logs import job_log
from fullbatch.settings.parse import plain, settings_of
from fullbatch.training.checkpoint import resume_from
from fullbatch.training.state import Row

log = logging.getLogger(__name__)


def verify_job(cfg: DictConfig) -> int:
    """Evaluate the checkpoint ``impl.checkpoint.name`` on its validation set and print what it recorded beside it.

    Data, model and hyperparameters are the checkpoint's, but for the keys that the command line names; of a file of
    another program they are all the command line's. Returns the
    exit status: 0, or 2 for a mistake.
    """
    with job_log(Path(HydraConfig.get().runtime.output_dir) / "log.txt") as terminal:
        try:
            verify(plain(cfg), HydraConfig.get().overrides.task, terminal.out)
        except (ValueError, OSError) as error:
            return mistake(error)
    return DONE


def verify(tree: dict[str, Any], typed: Sequence[str], console: Console) -> None:
    """See ``verify_job``; raises ``ValueError`` and ``OSError`` for mistakes."""
    name = settings_of(tree).impl.checkpoint.name
    if name is None:
        raise ValueError("impl.checkpoint.name: blank; give the name of the checkpoint to verify")
    tree, stored = restored(tree, name, typed)
    run = settings_of(tree)
    training = build_training(run, int(stored.checkpoint.get("seed", run.seed or 0)))
    with about(name):
        if stored.checkpoint:
            resume_from(training.state, stored)
        else:
            load_weights(training.state.evaluated_model, stored.weights)
    found = training.validate(training.state.evaluated_model, max((stored.step or 0) - 1, 0))
    loss, accuracy = torch.stack([found.loss, found.accuracy]).tolist()
    title = f"{name}, {stored.step or 'unknown'} steps"
    _show(console, title, {"valid_loss": loss, "valid_acc": accuracy}, training.state.rows)


def _show(console: Console, title: str, found: Row, rows: Sequence[Row]) -> None:
    validated = [row for row in rows if "valid_loss" in row]
    recorded = validated[-1] if validated else {}
    table = Table("", "now", f"recorded after step {recorded.get('step', '-')}", title=title)
    for key, value in found.items():
        table.add_row(key, f"{value:.6f}", f"{recorded[key]:.6f}" if key in recorded else "")
    console.print(table)
