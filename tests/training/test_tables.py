"""Tables, checkpoints, summaries, stop rules: what a run leaves behind."""

import csv
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from small_training import trainer

from fullbatch.results.curves import draw_curves
from fullbatch.training.checkpoint import differences, find_checkpoint, load_checkpoint, save_checkpoint
from fullbatch.training.stopping import evaluation_budget, full_accuracy
from fullbatch.training.summary import accuracy_at_minimal_loss, summarize
from fullbatch.training.tables import STEP_COLUMNS, ConvergenceTable, add_run, read_table


def test_a_row_never_shifts(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = ConvergenceTable(path, [{"step": 1, "lr": 0.5}])
    table.append({"step": 2, "valid_acc": 0.25})
    table.append({"step": 3, "sharpness": 7.0, "lr": 0.125})
    table.append({"lr": 0.0625, "step": 4})
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["step"], row["lr"], row["valid_acc"], row["sharpness"]) for row in rows] == [
        ("1", "0.5", "", ""),
        ("2", "", "0.25", ""),
        ("3", "0.125", "", "7.0"),
        ("4", "0.0625", "", ""),
    ]
    assert list(rows[0]) == [*STEP_COLUMNS, "sharpness"]


def test_runs_with_other_keys_share_a_table(tmp_path: Path) -> None:
    path = tmp_path / "tables" / "runs.csv"
    add_run(path, {"name": "a", "lr": 0.1})
    add_run(path, {"name": "b", "text": "with\ttab and\nnewline", "lr": 0.2})
    add_run(path, {"eps": 1e-8, "name": "c"})
    assert read_table(path) == [
        {"name": "a", "lr": "0.1", "text": "", "eps": ""},
        {"name": "b", "lr": "0.2", "text": "with\ttab and\nnewline", "eps": ""},
        {"name": "c", "lr": "", "text": "", "eps": "1e-08"},
    ]


def test_a_row_that_is_there_is_not_added_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    for row in ({"name": "a", "seed": 1}, {"name": "a", "seed": 1}, {"name": "a", "seed": 2}, {"name": "b", "seed": 1}):
        add_run(path, row, unless=("name", "seed"))
    assert [(row["name"], row["seed"]) for row in read_table(path)] == [("a", "1"), ("a", "2"), ("b", "1")]
    add_run(path, {"name": "a", "seed": 2, "configuration": "abc"}, unless=("name", "seed", "configuration"))
    assert len(read_table(path)) == 3  # rows of older versions have no such column
    add_run(path, {"name": "a", "seed": 2})
    assert len(read_table(path)) == 4


def test_concurrent_runs_lose_no_row(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: add_run(tmp_path / "runs.csv", {"name": str(n), f"key{n % 3}": n}), range(40)))
    assert sorted(int(row["name"]) for row in read_table(tmp_path / "runs.csv")) == list(range(40))


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    state = trainer().state.state_dict()
    save_checkpoint(path, state, config={"hyp": {"lr": 0.1}}, seed=3, keep=1)
    content = load_checkpoint(path)
    assert (content["config"], content["seed"]) == ({"hyp": {"lr": 0.1}}, 3)
    assert content["state"].keys() == state.keys()
    assert all(torch.equal(content["state"]["model"][key], value) for key, value in state["model"].items())


@pytest.mark.parametrize("cut", [0, 10, 1000, -1000, -1])
def test_a_truncated_checkpoint_is_reported_and_left_alone(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.pth"
    for _ in range(2):
        save_checkpoint(path, trainer().state.state_dict(), config={}, seed=0, keep=1)
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.pth: no checkpoint of this program .*x.previous.pth: rename it"):
        load_checkpoint(path)
    assert path.read_bytes() == content


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("unpickled",))


@pytest.mark.parametrize("content", [{"weight": torch.zeros(1)}, [1, 2], Evil()])
def test_a_foreign_file_is_refused_and_never_run(
    tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"x.pth: (a file of another program|no checkpoint of this program)"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"x.pth"):
        load_checkpoint(path)
    assert "unpickled" not in capsys.readouterr().out


def test_another_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"format": "fullbatch checkpoint", "version": 99}, path)
    with pytest.raises(ValueError, match="format 99; this version reads format 1"):
        load_checkpoint(path)


def test_where_a_crash_left_only_the_predecessor_it_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    assert find_checkpoint(path) is None
    for seed in (1, 2):
        save_checkpoint(path, {}, config={}, seed=seed, keep=1)
    assert find_checkpoint(path) == path
    path.unlink()
    found = find_checkpoint(path)
    assert found is not None
    assert load_checkpoint(found)["seed"] == 1


def test_differences_name_the_keys() -> None:
    stored, given = {"hyp": {"lr": 0.1, "old": 1}, "model": "a"}, {"hyp": {"lr": 0.2}, "model": "a", "new": 3}
    assert differences(stored, given) == [
        "hyp.lr: 0.1 there, 0.2 here",
        "hyp.old: 1 there, None here",
        "new: None there, 3 here",
    ]


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
    found = summarize(rows, warmup=0, window=1)
    assert found["max_val_acc"] == 0.5
    assert found["valid_acc_at_min_loss"] == found["valid_acc"] == 0.25
    assert (found["avg_step_time"], found["total_time"], found["evaluations"], found["steps_taken"]) == (
        2.0,
        8.0,
        6.0,
        3,
    )


def test_the_summary_counts_losses_and_failed_searches() -> None:
    rows = [row(1, 3.0, loss_evaluations=2.0, search_failed=1.0), row(2, 2.0, search_failed=0.0)]
    found = summarize(rows, warmup=0, window=1)
    assert (found["evaluations"], found["loss_evaluations"], found["searches_failed"]) == (4, 2, 1)
    assert "searches_failed" not in summarize([row(1, 3.0)], warmup=0, window=1)


@pytest.mark.parametrize("steps", [1, 5])
def test_curves_are_a_image(tmp_path: Path, steps: int) -> None:
    some_trainer = trainer(steps, validate_every=2)
    some_trainer.run()
    draw_curves(some_trainer.state.rows, tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
