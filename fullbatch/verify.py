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

from fullbatch.build import about, build_trainer
from fullbatch.config import plain, settings_of
from fullbatch.launch import DONE, mistake
from fullbatch.restore import restored
from fullbatch.runtime.device import set_up
from fullbatch.runtime.logs import job_log
from fullbatch.training.state import Row

log = logging.getLogger(__name__)


def verify_job(cfg: DictConfig) -> int:
    """Evaluate the checkpoint ``impl.checkpoint.name`` on its validation set and print what it recorded beside it.

    Data, model and hyperparameters are the checkpoint's, but for the keys that the command line names. Returns the
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
    tree, content = restored(tree, name, typed)
    run = settings_of(tree)
    set_up(threads=run.impl.threads, benchmark=run.impl.benchmark, deterministic=run.impl.deterministic)
    trainer = build_trainer(run, int(content["seed"]))
    with about(name):
        trainer.state.load_state_dict(content["state"])
    found = trainer.validate(trainer.state.evaluated_model, trainer.state.step - 1)
    loss, accuracy = torch.stack([found.loss, found.accuracy]).tolist()
    _show(console, name, {"valid_loss": loss, "valid_acc": accuracy}, trainer.state.rows)


def _show(console: Console, name: str, found: Row, rows: Sequence[Row]) -> None:
    validated = [row for row in rows if "valid_loss" in row]
    recorded = validated[-1] if validated else {}
    table = Table("", "now", f"recorded after step {recorded.get('step', '-')}", title=f"{name}, {len(rows)} steps")
    for key, value in found.items():
        table.add_row(key, f"{value:.6f}", f"{recorded[key]:.6f}" if key in recorded else "")
    console.print(table)
