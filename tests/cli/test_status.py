"""``python -m fullbatch status``: one row per job, whatever names and tables contain."""

import math
from pathlib import Path

import pytest

from fullbatch.cli.status import main as status
from fullbatch.results.ledger import JobDescription, Ledger, State, lease_of
from fullbatch.runtime.locks import lease
from fullbatch.training.tables import ConvergenceTable


def begun(launch: Path, job: str = "j", name: str = "mine", overrides: tuple[str, ...] = ("seed=1",)) -> int:
    folder = launch / "outputs" / job
    folder.mkdir(parents=True)
    ledger = Ledger(launch / "tables" / "ledger.sqlite")
    attempts = ledger.begin(JobDescription(job, "k", name, "digits", overrides, 4, "c"), folder)
    assert isinstance(attempts, list)
    return attempts[-1].number


def shown(launch: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert status([str(launch)]) == 0
    return capsys.readouterr().out


def test_user_text_is_not_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("data.mirrors=[/data/mirror]", "impl.logger=[tensorboard]", ":x:", "\x1b[31m", "a\nb")
    begun(tmp_path, name="x[gn]\x9b", overrides=overrides)
    text = shown(tmp_path, capsys)
    for part in ("x[gn]\\x9b", "data.mirrors=[/data/mirror] impl.logger=[tensorboard] :x: \\x1b[31m a\\nb"):
        assert part in text
    assert text.replace("\n", "").isprintable()


def test_the_steps_of_a_finished_run_are_those_of_its_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is found to be finished when it is started again writes no table of steps."""
    number = begun(tmp_path)
    Ledger(tmp_path / "tables" / "ledger.sqlite").end(number, State.FINISHED, "", {"steps_taken": 4, "valid_acc": 0.5})
    text = shown(tmp_path, capsys)
    assert "│ finished │ 4/4  │ 50.00" in text
    assert "\n1 job: 1 finished\n" in text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff\xfe", "not a table of the steps of a run"),
        (b"step\ttrain_time\n1\tsoon\n", "could not convert string to float: 'soon'"),
        (b"lr\n0.1\n", "it has no column step"),
        (b"step\ttrain_time\n1\t1e300\n", ""),
        (b"step\ttrain_time\n1\tnan\n", ""),
        (b"step\n", ""),
    ],
)
def test_a_damaged_table_of_steps_hides_no_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, problem: str
) -> None:
    begun(tmp_path, "good")
    ConvergenceTable(tmp_path / "outputs/good/table_mine_convergence_results.csv", [{"step": 1, "train_time": math.pi}])
    begun(tmp_path, "bad")
    (tmp_path / "outputs" / "bad" / "table_mine_convergence_results.csv").write_bytes(content)
    text = " ".join(shown(tmp_path, capsys).replace("│", " ").split())
    assert "2 jobs: 2 interrupted" in text
    assert "1/4 0:00:09" in text
    assert problem in text
    assert ("not a table" in text) == bool(problem)


def test_a_running_job_is_not_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path)
    lock = lease_of(tmp_path / "outputs" / "j")
    with lease(lock):
        assert status([str(tmp_path), "--forget", "j"]) == 2
        message = capsys.readouterr().err
    assert message.startswith("--forget j: process ")
    assert str(lock) in message
    assert status([str(tmp_path), "--forget", "j"]) == 0
    assert "no jobs" in capsys.readouterr().out
