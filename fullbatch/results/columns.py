"""The columns of the table of runs and of the tables of steps: what each one is, its unit, and what it means.

A column of the table of runs identifies a run, is a setting, or is a result; ``fullbatch.report`` tells experiments
apart by their settings. Columns that are not listed are keys of ``hyp``, or of an earlier version, and settings. The
columns of probes are described by the probes, in ``analysis_<name>.json`` of the run folder.
"""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a column holds."""

    IDENTITY = "identity"
    SETTING = "setting"
    RESULT = "result"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        kind: what it holds.
        meaning: one sentence.
        unit: empty for numbers without a unit and for text; a ``fraction`` lies in [0, 1].
    """

    kind: Kind
    meaning: str
    unit: str = ""


RUN_COLUMNS = {
    "name": Column(Kind.IDENTITY, "name of the run"),
    "status": Column(Kind.RESULT, "why the run ended"),
    "model": Column(Kind.SETTING, "name and depth of the model, or the target of model=import"),
    "optimizer": Column(Kind.SETTING, "name of the optimizer"),
    "parent": Column(Kind.SETTING, "checkpoint that the run was forked from"),
    "parent_step": Column(Kind.SETTING, "number of steps that the parent had taken"),
    "stoch": Column(Kind.SETTING, "whether the run began in stochastic mode"),
    "augmentations": Column(Kind.SETTING, "whether training images were augmented"),
    "valid_acc": Column(Kind.RESULT, "validation accuracy after the last step", "fraction"),
    "train_acc": Column(Kind.RESULT, "training accuracy before the last update", "fraction"),
    "valid_loss": Column(Kind.RESULT, "validation loss after the last step"),
    "train_loss": Column(Kind.RESULT, "training loss before the last update"),
    "full_loss": Column(Kind.RESULT, "training loss with weight decay and gradient penalty, before the last update"),
    "grad_norm": Column(
        Kind.RESULT, "root mean square of the gradient norms of sub-batches, before regularizer and clip"
    ),
    "param_norm": Column(Kind.RESULT, "squared norm of the parameters before the last update"),
    "valid_acc_at_min_loss": Column(
        Kind.RESULT, "validation accuracy of the window of steps with the lowest mean full_loss", "fraction"
    ),
    "max_val_acc": Column(Kind.RESULT, "highest validation accuracy of all steps", "fraction"),
    "avg_step_time": Column(Kind.RESULT, "mean time of a step, without validation and analysis", "s"),
    "total_time": Column(Kind.RESULT, "time of steps, validation and analysis", "s"),
    "evaluations": Column(Kind.RESULT, "number of gradients of all the data"),
    "loss_evaluations": Column(Kind.RESULT, "number of losses of all the data, besides those of the gradients"),
    "steps_taken": Column(Kind.RESULT, "number of steps"),
    "searches_failed": Column(Kind.RESULT, "number of line searches that met no sufficient decrease"),
    "samples_per_second": Column(
        Kind.RESULT, "samples times gradient evaluations, a loss counting a third, by the time in training", "1/s"
    ),
    "peak_share": Column(
        Kind.RESULT, "operations per second divided by those of matrix products on the same device", "fraction"
    ),
    "size": Column(Kind.SETTING, "number of training samples"),
    "batch_size": Column(Kind.SETTING, "number of samples in a block"),
    "template_name": Column(Kind.IDENTITY, "name of the hyp file that the settings began with"),
    "seed": Column(Kind.IDENTITY, "seed of the run"),
    "configuration": Column(Kind.IDENTITY, "hash of all settings that determine the numbers, except for the seed"),
    "folder": Column(Kind.IDENTITY, "run folder"),
}
"""Columns of ``table_fb_<data>_runs.csv`` that are not keys of ``hyp``, and those keys that are no settings."""

STEP_COLUMNS = {
    "step": Column(Kind.IDENTITY, "number of the step, from 1"),
    "train_loss": Column(Kind.RESULT, "training loss before the update"),
    "train_acc": Column(Kind.RESULT, "training accuracy before the update", "fraction"),
    "valid_loss": Column(Kind.RESULT, "validation loss after the update"),
    "valid_acc": Column(Kind.RESULT, "validation accuracy after the update", "fraction"),
    "lr": Column(Kind.RESULT, "learning rate of the update"),
    "train_time": Column(Kind.RESULT, "time of the step, without validation and analysis", "s"),
    "valid_time": Column(Kind.RESULT, "time of the validation", "s"),
    "analysis_time": Column(Kind.RESULT, "time of the probes", "s"),
    "evaluations": Column(Kind.RESULT, "number of gradients of all the data"),
    "loss_evaluations": Column(Kind.RESULT, "number of losses of all the data, besides those of the gradients"),
    "full_loss": Column(Kind.RESULT, "training loss with weight decay and gradient penalty, before the update"),
    "grad_norm": Column(
        Kind.RESULT, "root mean square of the gradient norms of sub-batches, before regularizer and clip"
    ),
    "full_grad_norm": Column(Kind.RESULT, "norm of the gradient of all the data, regularized, before the clip"),
    "update_norm": Column(Kind.RESULT, "norm of the gradient after norm bias, clip and noise"),
    "param_norm": Column(Kind.RESULT, "squared norm of the parameters before the update"),
    "num_clipped": Column(Kind.RESULT, "number of sub-batch gradients that batch_clip shortened"),
    "step_length": Column(Kind.RESULT, "step length a that the line search accepted"),
    "search_failed": Column(Kind.RESULT, "1 if the line search met no sufficient decrease, else 0"),
    "pair_damped": Column(Kind.RESULT, "1 if L-BFGS damped its last pair of step and change of gradient, else 0"),
    "pair_skipped": Column(Kind.RESULT, "1 if L-BFGS dropped its last pair of step and change of gradient, else 0"),
}
"""Columns of ``table_<name>_convergence_results.csv``, except for those of probes."""


def is_setting(column: str) -> bool:
    """Return whether a column of the table of runs is a setting."""
    return column not in RUN_COLUMNS or RUN_COLUMNS[column].kind is Kind.SETTING
