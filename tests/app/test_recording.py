"""What follows the last step costs no result: the row and the ledger come first, and what fails is a warning."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from running import Script, rows_of, run_in_process

from fullbatch.app import job
from fullbatch.results.ledger import Ledger, State
from fullbatch.runtime.locks import hold_lock
from fullbatch.training import tables

pytestmark = pytest.mark.slow

TINY = [
    *("data=digits", "data.size=60", "data.valid_size=40", "data.batch_size=20", "model=linear", "hyp=fb1", "seed=1"),
    *("hyp.steps=2", "hyp.warmup=0", "impl.device=cpu", "impl.threads=1", "hydra.run.dir=run"),
]
TABLE = "table_fb_digits_runs.csv"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    return lambda *arguments: run_in_process(monkeypatch, tmp_path, *TINY, *arguments)


def recorded(launch: Path) -> tuple[State, list[str]]:
    """Return the state in the ledger, and the folders with a row of the run."""
    (attempt,) = Ledger(launch / "tables" / "ledger.sqlite").attempts()
    folders = [
        path.parent.name for path in sorted(launch.rglob(TABLE)) if path.is_file() and b"all 2" in path.read_bytes()
    ]
    return attempt.state, folders


def not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(not_text, "codec can't decode"), (Path.mkdir, "is a directory"), (lambda _: None, "locked by another process")],
)
def test_a_table_that_cannot_be_written_costs_no_row(
    script: Script,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    path = tmp_path / "tables" / TABLE
    monkeypatch.setattr(tables, "SECONDS_TO_WAIT", 0.1)
    monkeypatch.setattr("fullbatch.app.train.require_writable", lambda _: None)  # it becomes so while the run goes on
    path.parent.mkdir()
    spoil(path)
    with hold_lock(path.with_name(f".{path.name}.lock" if reason.startswith("locked") else "another")):
        assert script() == 0
    shown = capsys.readouterr()
    assert f"{TABLE}: without the row of this run (" in shown.err
    assert reason in shown.err
    assert f"the row of this run is in run/{TABLE}" in shown.err.replace(f"{tmp_path}/", "")
    assert "steps_taken" in shown.out
    assert recorded(tmp_path) == (State.FINISHED, ["run"])
    (row,) = rows_of(tmp_path / "run" / TABLE)
    assert (row["name"], row["seed"]) == ("default", "1")


def test_loggers_are_closed_after_the_run_is_recorded(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_close = []

    def finish() -> None:
        at_close.append(recorded(tmp_path))
        raise RuntimeError("the server is gone")

    library = SimpleNamespace(step=0, log=lambda values, step: None, finish=finish)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: library))
    assert script("impl.logger=wandb") == 0
    assert at_close == [(State.FINISHED, ["tables"])]


def test_a_speed_that_cannot_be_measured_is_a_warning(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def speed(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(job, "speed", speed)
    assert script() == 0
    assert capsys.readouterr().err == "the speed of the run is not measured: CUDA out of memory\n"
    assert recorded(tmp_path) == (State.FINISHED, ["tables"])
