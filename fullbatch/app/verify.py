"""Validation loss and accuracy of a checkpoint, evaluated again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fullbatch.app.job_scope import job_scope
from fullbatch.app.restore import restore
from fullbatch.build.data import about
from fullbatch.build.trainer import build_evaluation
from fullbatch.models.weights import load_weights
from fullbatch.settings.parse import parse_tree, to_tree
from fullbatch.training.state import Row


def verify_job(cfg: DictConfig) -> int:
    """Evaluate the checkpoint ``impl.checkpoint.name`` on its validation set, and print the recorded values beside it.

    Data, model and loss are the checkpoint's, except for the keys on the command line, and for paths and code, which
    only the command line can name; for a file of another program they are all the command line's. Returns the exit
    status, see ``ExitStatus``.
    """
    with job_scope(Path(HydraConfig.get().runtime.output_dir), catch_signals=False) as scope:
        verify(to_tree(cfg), HydraConfig.get().overrides.task, scope.console)
    return scope.status


def verify(tree: dict[str, Any], overrides: Sequence[str], console: Console) -> None:
    """Print the table of ``verify_job``; ``ValueError`` and ``OSError`` for mistakes."""
    name = parse_tree(tree).impl.checkpoint.name
    tree, stored = restore(tree, name, overrides, training=False)
    run, state = parse_tree(tree), stored.checkpoint.get("state", {})
    model, validate = build_evaluation(run, int(stored.checkpoint.get("seed", run.seed or 0)))
    with about(str(name)):
        without_average = state and stored.checkpoint["config"]["hyp"].get("evaluate_ema") and not run.hyp.evaluate_ema
        load_weights(model, state["model"] if without_average else stored.weights)
    evaluation = validate(model, max((stored.step or 0) - 1, 0))
    loss, accuracy = torch.stack([evaluation.loss, evaluation.accuracy]).tolist()
    recorded: Row = next((row for row in reversed(state.get("rows", ())) if "valid_loss" in row), {})
    title = f"{name}, {stored.step or 'unknown'} steps"
    table = Table("", "now", f"recorded after step {recorded.get('step', '-')}", title=title)
    for key, value in {"valid_loss": loss, "valid_acc": accuracy}.items():
        table.add_row(key, f"{value:.6f}", f"{recorded[key]:.6f}" if key in recorded else "")
    console.print(table)
