"""Rules that end a run early."""

from collections.abc import Callable, Sequence

from fullbatch.training.state import Row

StopRule = Callable[[Sequence[Row]], str | None]
"""From the rows so far to the reason for ending the run, or None."""


def full_accuracy(num_steps: int) -> StopRule:
    """Stop after ``num_steps`` consecutive steps at 100 % training accuracy."""

    def rule(rows: Sequence[Row]) -> str | None:
        last = rows[-num_steps:]
        reached = len(last) == num_steps and all(row.get("train_acc") == 1.0 for row in last)
        return f"{num_steps} steps in a row at 100 % training accuracy" if reached else None

    return rule


def evaluations_spent(row: Row) -> float:
    """Return the cost of a step in gradient evaluations of its data; a loss by forward passes counts as a third."""
    return row.get("evaluations", 0.0) + row.get("loss_evaluations", 0.0) / 3


def evaluation_budget(max_evaluations: float) -> StopRule:
    """Stop when the steps have cost ``max_evaluations`` gradient evaluations of the whole training set."""

    counted: Sequence[Row] = ()
    costs: list[float] = []

    def rule(rows: Sequence[Row]) -> str | None:
        nonlocal counted
        if rows is not counted:
            counted = rows
            costs.clear()
        costs.extend(evaluations_spent(row) for row in rows[len(costs) :])  # each row once, however many there are
        spent = sum(costs)
        return (
            f"{spent:g} of {max_evaluations:g} gradient evaluations are used up" if spent >= max_evaluations else None
        )

    return rule
