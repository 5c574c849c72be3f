"""Rules that end a run early."""

from fullbatch.training.stopping import evaluation_budget, full_accuracy


def test_stop_after_consecutive_steps_at_full_accuracy() -> None:
    rule = full_accuracy(2)
    rows = [{"train_acc": value} for value in (1.0, 0.99, 1.0, 1.0)]
    assert [rule(rows[:count]) is not None for count in range(5)] == [False, False, False, False, True]
    assert rule(rows) == "2 steps in a row at 100 % training accuracy"


def test_stop_when_the_evaluations_are_used_up() -> None:
    rule = evaluation_budget(5)
    assert rule([{"evaluations": 2.0}] * 2) is None
    assert rule([{"evaluations": 2.0}] * 3) == "6 of 5 gradient evaluations are used up"


def test_a_loss_counts_a_third_of_a_gradient() -> None:
    rule = evaluation_budget(4)
    assert rule([{"evaluations": 1.0, "loss_evaluations": 2.0}] * 2) is None
    assert rule([{"evaluations": 1.0, "loss_evaluations": 3.0}] * 2) == "4 of 4 gradient evaluations are used up"
