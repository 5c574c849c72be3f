"""The summary of a run for the table of runs."""

from collections.abc import Sequence

from fullbatch.training.state import Row

CLOSING = ("valid_acc", "train_acc", "valid_loss", "train_loss", "full_loss", "grad_norm", "param_norm")
"""Values of the last step."""


def summarize(rows: Sequence[Row], *, warmup: int, window: int) -> dict[str, float]:
    """Return the last values of a run, its accuracies, times and counts; fewer if no step was taken."""
    last, validated = rows[-1] if rows else {}, [row for row in rows if "valid_acc" in row]
    closing: dict[str, float] = {name: last[name] for name in CLOSING if name in last}
    timed = [row["train_time"] for row in rows if "train_time" in row]  # steps of another program have no times
    train_time = sum(timed)
    failures = [row["search_failed"] for row in rows if "search_failed" in row]
    return {
        **closing,
        "valid_acc_at_min_loss": accuracy_at_minimal_loss(rows, warmup=warmup, window=window),
        "max_val_acc": max((row["valid_acc"] for row in validated), default=float("nan")),
        "avg_step_time": train_time / max(len(timed), 1),
        "total_time": train_time + sum(row.get("valid_time", 0.0) + row.get("analysis_time", 0.0) for row in rows),
        "evaluations": sum(row.get("evaluations", 0.0) for row in rows),
        "loss_evaluations": sum(row.get("loss_evaluations", 0.0) for row in rows),
        "steps_taken": len(rows),
        **({"searches_failed": sum(failures)} if failures else {}),
    }


def accuracy_at_minimal_loss(rows: Sequence[Row], *, warmup: int, window: int) -> float:
    """Return the validation accuracy of the window of ``window`` steps with the lowest mean full_loss.

    The first ``warmup`` rows are left out (unless there are no others); windows without a validation do not count.
    """
    rows = rows[warmup:] or rows
    windows = [rows[start : start + window] for start in range(0, len(rows), window)]
    candidates = [
        (sum(losses) / len(losses), validated[-1]["valid_acc"])
        for part in windows
        if (validated := [row for row in part if "valid_acc" in row])
        and (losses := [row["full_loss"] for row in part if "full_loss" in row])
    ]
    return min(candidates, default=(0.0, float("nan")))[1]
