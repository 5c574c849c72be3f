"""Runs on a database of frozen copies: the trajectory of augmentation on the fly, on disk and after failures."""

import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from composing import composed
from running import SMALL, rows_of, run_in_process, signal_when, start

from fullbatch.build.data import build_data, build_loader
from fullbatch.build.trainer import build_training
from fullbatch.settings.parse import parse

LIVE = "data.augmentations_train={RandomCrop: [8,1], RandomHorizontalFlip: 0.5}"
FROZEN = ["data/db=LMDB", "data.db.path=db", "data.augmentations_train=", "data.db.seed=1"]
TURNS = "hyp.train_semi_stochastic=True"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    return lambda *arguments: run_in_process(monkeypatch, tmp_path, *SMALL, *arguments)


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    (table,) = folder.glob(f"outputs/*/*/table_{name}_convergence_results.csv")
    return [{key: value for key, value in row.items() if not key.endswith("time")} for row in rows_of(table)]


@pytest.mark.slow
def test_step_by_step_the_rounds_are_augmentation_on_the_fly(script: Callable[..., int], tmp_path: Path) -> None:
    size = "data.batch_size=32"  # of 60: the last block is smaller
    assert script("name=live", LIVE, size) == 0
    assert script("name=frozen", *FROZEN, "data.db.rounds=4", TURNS, size) == 0
    assert rows(tmp_path, "frozen") == rows(tmp_path, "live")


@pytest.mark.slow
def test_a_dry_run_leaves_no_database(
    script: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert script(*FROZEN, "data.db.rounds=3", TURNS, "dryrun=True") == 0
    assert not (tmp_path / "db").exists()


@pytest.mark.slow
def test_a_run_continues_whatever_way_the_file_is_written(script: Callable[..., int], tmp_path: Path) -> None:
    named = ["impl.checkpoint.name=mine", *FROZEN, "data.db.rounds=2"]
    assert script(*named, "name=once") == 0
    other_way = ["data.db.write_frequency=9", "data.db.path=elsewhere", "data.db.rebuild_existing_database=True"]
    assert script(*named, *other_way, "hyp.steps=6") == 0
    assert (tmp_path / "elsewhere" / "digits_train_60x2").is_dir()
    assert script(*named, "data.db.rounds=3", "hyp.steps=7") == 2


def test_all_rounds_are_the_full_batch_and_copies_share_a_noisy_label(tmp_path: Path) -> None:
    def run(*overrides: str) -> tuple[int, torch.Tensor]:
        settings = parse(composed(*SMALL, *overrides, "hyp.label_noise=0.5"))
        data = build_data(settings, seed=3)
        return len(build_loader(settings, data, data.train, 3, torch.device("cpu")).blocks(0)), data.train.labels

    frozen = [f"data.db.path={tmp_path}", "data.db.rounds=4", *(part for part in FROZEN if "path" not in part)]
    number, labels = run(*frozen)
    assert number == 4 * 60 / 20
    assert run(*frozen, TURNS)[0] == 60 / 20
    assert torch.equal(labels, run()[1].repeat(4))


def test_steps_that_take_turns_are_not_one_function(tmp_path: Path) -> None:
    def constant(*overrides: str) -> bool:
        frozen = [f"data.db.path={tmp_path}", "data.db.rounds=2", *(part for part in FROZEN if "path" not in part)]
        return build_training(parse(composed(*SMALL, *frozen, *overrides)), seed=3).step.data.constant

    assert constant()
    assert not constant(TURNS)


def test_validation_images_are_frozen_where_asked(tmp_path: Path) -> None:
    settings = parse(
        composed(
            *SMALL,
            *FROZEN[2:],
            "data/db=LMDB",
            f"data.db.path={tmp_path}",
            "data.db.pixels=",
            "++data.db.augmentations_val={Pad: 1}",
        )
    )
    data = build_data(settings, seed=3)
    assert data.valid.images.fetch(torch.arange(2)).shape == (2, 1, 10, 10)
    assert sorted(path.name for path in tmp_path.glob("digits*")) == ["digits_train_60x1", "digits_val_40x1"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_build_and_the_next_start_continues(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    rounds = ["data.db.rounds=150", "data.db.write_frequency=60", TURNS, "hyp.steps=1"]
    process = start(tmp_path, *SMALL, *FROZEN, *rounds, "impl.threads=2")
    unfinished = tmp_path / "db" / ".digits_train_60x150.building" / "data.mdb"
    shown = signal_when(process, lambda: unfinished.exists() and unfinished.stat().st_size > 50_000, number)
    assert process.returncode == 128 + number
    (written,) = re.findall(r"^db/digits_train_60x150: stopped with ([\d,]+) of 9,000 images .*", shown, re.M)
    assert 60 <= int(written.replace(",", "")) < 9_000
    assert shown.count("saving soon, then stopping") == 1  # workers log nothing
    assert "Traceback" not in shown
    assert not (tmp_path / "tables").exists() or not list((tmp_path / "tables").glob("*.csv"))
    assert script(*FROZEN, *rounds) == 0
    assert "9,000 images, digest" in capsys.readouterr().out


@pytest.mark.slow
def test_a_database_of_another_seed_is_refused_and_kept(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(*FROZEN, "hyp.steps=1") == 0
    path = tmp_path / "db" / "digits_train_60x1" / "data.mdb"
    before = path.read_bytes()
    capsys.readouterr()
    assert script(*FROZEN, "data.db.seed=2") == 2
    shown = capsys.readouterr().err
    assert re.search(r"^db/digits_train_60x1: holds other images \(seed: 1 there, 2 here\)", shown, re.M)
    assert len(shown.splitlines()) == 1
    assert path.read_bytes() == before
    assert script(*FROZEN, "hyp.steps=1") == 0


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_next_run_continues(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = ["data.db.rounds=50", "data.db.write_frequency=200", "hyp.steps=1", TURNS]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        assert script(*FROZEN, *rounds) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    shown = capsys.readouterr().err
    assert re.search(r"^db/\.digits_train_60x50\.building: cannot be written .*the next run continues", shown, re.M)
    assert "Traceback" not in shown
    assert script(*FROZEN, *rounds) == 0
