"""Loggers: they have the values of the tables, each once, and do not change the run."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from composing import composed
from running import SMALL, rows_of, run_in_process

from fullbatch.settings.parse import parse
from fullbatch.training.loggers import RunDescription, start_loggers

TABLE = "table_default_convergence_results.csv"
TIMES = ("train_time", "valid_time")
Run = Callable[..., int]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return lambda *arguments: run_in_process(monkeypatch, tmp_path, *SMALL, "hyp.scheduler=", *arguments)


class Fake:
    """Stands for wandb and trackio: records its calls."""

    def __init__(self, step: int = 0, fails_at: int = -1) -> None:
        self.step, self.fails_at = step, fails_at
        self.started: list[dict[str, Any]] = []
        self.rows: list[dict[str, float]] = []
        self.finished = 0

    def init(self, **arguments: Any) -> "Fake":
        self.started.append(arguments)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        if step == self.fails_at:
            raise RuntimeError("the server is gone")
        self.rows.append({"step": step, **values})

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture(params=["wandb", "trackio"])
def hosted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Fake]:
    for variable in ("WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    fake = Fake()
    monkeypatch.setitem(sys.modules, request.param, SimpleNamespace(init=fake.init))
    return request.param, fake


def folders(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("outputs/*/*"))


def numbers(folder: Path) -> list[dict[str, float]]:
    return [{key: float(value) for key, value in row.items() if value} for row in rows_of(folder / TABLE)]


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(one.step, one.value) for one in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def of_table(folder: Path) -> dict[str, list[tuple[int, float]]]:
    columns: dict[str, list[tuple[int, float]]] = {}
    for row in numbers(folder):
        for key in row.keys() - {"step"}:
            columns.setdefault(key, []).append((int(row["step"]), float(np.float32(row[key]))))
    return columns


@pytest.mark.parametrize(
    ("value", "names"),
    {
        "": (),
        "none": (),
        "TensorBoard": ("tensorboard",),
        "[wandb,trackio,WandB]": ("wandb", "trackio"),
    }.items(),
)
def test_loggers_are_a_blank_a_name_or_several(value: str, names: tuple[str, ...]) -> None:
    assert parse(composed("hyp=fb1", f"impl.logger={value}")).impl.logger == names


@pytest.mark.slow
def test_events_are_the_table_and_the_run_is_the_same(script: Run, tmp_path: Path) -> None:
    assert script("impl.logger=tensorboard", "impl.validate_every_nth_step=2") == 0
    assert script("impl.validate_every_nth_step=2") == 0
    logged, plain = folders(tmp_path)
    scalars = events(logged)
    assert scalars == of_table(logged)
    assert [step for step, _ in scalars["valid_acc"]] == [1, 3, 4]
    assert not (plain / "tensorboard").exists()
    for one, other in zip(numbers(logged), numbers(plain), strict=True):
        assert all(one[key] == other[key] for key in one if key not in TIMES)


@pytest.mark.slow
@pytest.mark.parametrize("place", [[], ["hydra.run.dir=same"]], ids=["another folder", "the same folder"])
def test_a_continued_run_has_each_step_once(script: Run, tmp_path: Path, place: list[str]) -> None:
    always = ["impl.checkpoint.name=mine", "impl.logger=tensorboard", *place]
    assert script("hyp.steps=2", *always) == 0
    assert script(*always) == 0
    folder = tmp_path / "same" if place else folders(tmp_path)[-1]
    assert [step for step, _ in events(folder)["train_loss"]] == [1, 2, 3, 4]
    assert events(folder) == of_table(folder)


@pytest.mark.slow
def test_the_configuration_is_logged(script: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    assert script("impl.logger=tensorboard") == 0
    (folder,) = folders(tmp_path)
    metadata = EventAccumulator(str(folder / "tensorboard")).Reload().summary_metadata["_hparams_/session_start_info"]
    hparams = HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info.hparams
    assert hparams["hyp.optim.lr"].number_value == 0.1
    assert hparams["seed"].number_value == 1
    assert hparams["data.name"].string_value == "digits"


@pytest.mark.slow
def test_hosted_runs_have_the_rows_of_the_table(script: Run, tmp_path: Path, hosted: tuple[str, Fake]) -> None:
    name, fake = hosted
    assert script(f"impl.logger={name}", "name=default") == 0
    (folder,) = folders(tmp_path)
    assert fake.rows == numbers(folder)
    (started,) = fake.started
    assert (started["project"], started["name"], fake.finished) == ("fullbatch", "default", 1)
    assert started["config"]["hyp.grad_reg.block_strength"] == 0.5
    assert started["config"]["seed"] == 1
    if name == "wandb":
        assert tmp_path / started["dir"] == folder
        assert started["resume"] == "allow"


@pytest.mark.slow
def test_a_continued_job_is_the_same_wandb_run(script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=fake.init))
    for seed in (1, 1, 2):
        assert script("impl.logger=wandb", f"seed={seed}") == 0
    first, again, other = (started["id"] for started in fake.started)
    assert first == again != other


def test_steps_that_wandb_has_are_not_logged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(step=3)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=fake.init))
    rows = [{"step": step, "train_loss": 1 / step} for step in range(1, 5)]
    with start_loggers(["wandb"], RunDescription("a", "b", tmp_path, {}), rows) as (observe,):
        observe({"step": 5, "train_loss": 0.2})
    assert [row["step"] for row in fake.rows] == [3, 4, 5]


def test_a_logger_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = Fake(fails_at=2)
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=fake.init))
    with (
        caplog.at_level(logging.WARNING),
        start_loggers(["trackio"], RunDescription("a", "b", tmp_path, {}), []) as (observe,),
    ):
        for step in range(1, 5):
            observe({"step": step, "train_loss": 1 / step})
    assert [row["step"] for row in fake.rows] == [1]
    assert [record.getMessage() for record in caplog.records] == [
        "impl.logger=trackio: the server is gone; the remaining steps are only in the table"
    ]


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("tensorboard", "torch.utils.tensorboard", "logging"),
        ("wandb", "wandb", "wandb"),
        ("trackio", "trackio", "trackio"),
    ],
)
def test_a_missing_library_is_named_before_the_run(
    script: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    module: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert script(f"impl.logger={name}") == 2
    shown = capsys.readouterr()
    assert shown.err.strip() == f"impl.logger={name}: {name} is not installed (pip install 'fullbatch[{extra}]')"


def test_a_logger_that_cannot_start_is_named(
    script: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("no account")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    assert script("impl.logger=wandb") == 2
    assert "impl.logger=wandb: cannot start: no account" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_logs_nothing(script: Run, tmp_path: Path, hosted: tuple[str, Fake]) -> None:
    name, fake = hosted
    assert script(f"impl.logger=[tensorboard,{name}]", "dryrun=True") == 0
    assert fake.started == []
    assert not list(tmp_path.rglob("*tfevents*"))
