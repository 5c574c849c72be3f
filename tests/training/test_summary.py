"""Summaries of runs: last values, sums, and the accuracy at the minimal loss."""

import math

from fullbatch.training.summary import accuracy_at_minimal_loss, summarize


def row(step: int, full_loss: float, **more: float) -> dict[str, float]:
    return {"step": step, "full_loss": full_loss, "train_time": 2.0, "evaluations": 2.0, **more}


def test_accuracy_at_minimal_loss_leaves_out_the_warm_up_and_averages_windows() -> None:
    rows = [row(1, 0.0, valid_acc=0.1), row(2, 9, valid_acc=0.2), row(3, 1)]
    rows += [row(4, 4.5, valid_acc=0.3), row(5, 4.6), row(6, 0.1), row(7, 9.9)]
    assert accuracy_at_minimal_loss(rows, warmup=1, window=2) == 0.3  # means 5, 4.55; the last has no validation
    assert accuracy_at_minimal_loss(rows, warmup=0, window=1) == 0.1
    assert accuracy_at_minimal_loss(rows[:1], warmup=5, window=2) == 0.1
    assert math.isnan(accuracy_at_minimal_loss(rows[2:3], warmup=0, window=2))


def test_the_summary_adds_up() -> None:
    rows = [row(1, 3.0, valid_acc=0.5, valid_time=1.0), row(2, 2.0), row(3, 1.0, valid_acc=0.25, valid_time=1.0)]
    result = summarize(rows, warmup=0, window=1)
    assert result["max_val_acc"] == 0.5
    assert result["valid_acc_at_min_loss"] == result["valid_acc"] == 0.25
    assert (result["avg_step_time"], result["total_time"], result["evaluations"], result["steps_taken"]) == (
        2.0,
        8.0,
        6.0,
        3,
    )


def test_the_summary_counts_losses_and_failed_searches() -> None:
    rows = [row(1, 3.0, loss_evaluations=2.0, search_failed=1.0), row(2, 2.0, search_failed=0.0)]
    result = summarize(rows, warmup=0, window=1)
    assert (result["evaluations"], result["loss_evaluations"], result["searches_failed"]) == (4, 2, 1)
    assert "searches_failed" not in summarize([row(1, 3.0)], warmup=0, window=1)
