"""Runs as a user starts them: what they leave behind, how they continue, how they end."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import SCRIPT, SMALL, Script, rows_of, run_in_process, signal_when, start

from fullbatch.app import train
from fullbatch.cli import report
from fullbatch.results.ledger import Ledger, State
from fullbatch.training.checkpoint import load_checkpoint


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    return lambda *arguments, **options: run_in_process(monkeypatch, tmp_path, *SMALL, *arguments, **options)


def run_folders(folder: Path) -> list[Path]:
    return sorted((folder / "outputs").glob("*/*"))


def test_a_run_leaves_what_the_readme_lists(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("name=first", "impl.validate_every_nth_step=2", drawn=True) == 0
    (folder,) = run_folders(tmp_path)
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint.pth",
        "checkpoint.previous.pth",
        "config.yaml",
        "curves_first.png",
        "log.txt",
        "run.json",
        "table_first_convergence_results.csv",
    }
    assert (folder / "curves_first.png").read_bytes().startswith(b"\x89PNG")
    steps = rows_of(folder / "table_first_convergence_results.csv")
    assert [row["step"] for row in steps] == ["1", "2", "3", "4"]
    assert [bool(row["valid_acc"]) for row in steps] == [True, False, True, True]
    assert [float(row["lr"]) for row in steps] == pytest.approx([0.0, 0.05, 0.1, 0.1])
    (run,) = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    assert (run["name"], run["model"], run["optimizer"], run["seed"]) == ("first", "resnet20", "gd", "1")
    assert float(run["train_loss"]) == float(steps[-1]["train_loss"])
    assert (run["status"], run["grad_reg.block_strength"]) == ("all 4 steps are taken", "0.5")
    provenance = json.loads((folder / "run.json").read_text())
    assert "name=first" in provenance["command"]
    assert "seed: 1" in (folder / "config.yaml").read_text()
    shown = capsys.readouterr().out
    assert "full batch, optimizer gd: lr 0.1, momentum 0.9" in shown
    assert "valid_acc_at_min_loss" in shown
    assert "data digits: 60 training and 40 validation images of 1x8x8 in 10 classes" in shown


LINEAR = [argument for argument in SMALL if not argument.startswith("model")] + ["model=linear"]


def test_figures_depend_on_no_backend_no_latex_and_no_dollar_in_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PATH", "/nowhere")  # without LaTeX
    process = start(tmp_path, *LINEAR, "name='$$a_$$'", "analysis=edge_of_stability")
    shown = process.communicate(timeout=120)[0]
    assert process.returncode == 0, shown
    assert "is not written" not in shown
    for path in ("curves_$$a_$$.png", "sharpness_$$a_$$.png"):
        assert (run_folders(tmp_path)[0] / path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no canvas\nand more"), "no canvas"),
        (OSError(28, "No space left", "a.png"), "a.png: no space left"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_a_warning_after_the_run_is_recorded(
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    reason: str,
) -> None:
    recorded = []

    def draw(*_: object) -> None:
        (attempt,) = Ledger(tmp_path / "tables" / "ledger.sqlite").attempts()
        (row,) = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
        recorded.append((attempt.state, row["name"]))
        raise error

    monkeypatch.setattr(train, "draw_curves", draw)
    monkeypatch.setattr(train, "draw_edge_of_stability", draw)
    assert script("name=first", "hyp.steps=2", drawn=True) == 0
    assert recorded == [(State.FINISHED, "first")] * 2
    shown = " ".join(capsys.readouterr().err.split())
    for name in ("curves_first.png", "sharpness_first.png"):
        assert f"{name} is not written: {reason}" in shown
    assert "and more" not in shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(script: Script, tmp_path: Path) -> None:
    for _ in range(2):
        assert script() == 0
    first, second = (load_checkpoint(folder / "checkpoint.pth")["state"]["model"] for folder in run_folders(tmp_path))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert script("seed=2") == 0
    third = load_checkpoint(run_folders(tmp_path)[-1] / "checkpoint.pth")["state"]["model"]
    assert not torch.equal(first["fc.weight"], third["fc.weight"])


@pytest.mark.slow
def test_a_finished_run_prints_its_result_again(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("impl.checkpoint.name=mine") == 0
    content = (tmp_path / "checkpoints" / "mine.pth").read_bytes()
    capsys.readouterr()
    assert script("impl.checkpoint.name=mine", "impl.validate_every_nth_step=3") == 0
    shown = capsys.readouterr().out
    assert "this run has finished before (all 4 steps are taken)" in shown
    assert "max_val_acc" in shown
    assert (tmp_path / "checkpoints" / "mine.pth").read_bytes() == content
    assert len(rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")) == 1


@pytest.mark.slow
def test_more_steps_continue_a_named_checkpoint(script: Script, tmp_path: Path) -> None:
    constant = ["impl.checkpoint.name=mine", "hyp.scheduler="]
    assert script(*constant) == 0
    assert script(*constant, "hyp.steps=6") == 0
    assert script("hyp.scheduler=", "hyp.steps=6") == 0
    continued = load_checkpoint(tmp_path / "checkpoints" / "mine.pth")["state"]
    uninterrupted = load_checkpoint(run_folders(tmp_path)[-1] / "checkpoint.pth")["state"]
    assert all(torch.equal(continued["model"][key], value) for key, value in uninterrupted["model"].items())
    assert [row["train_loss"] for row in continued["rows"]] == [row["train_loss"] for row in uninterrupted["rows"]]
    assert [row["step"] for row in rows_of(sorted((tmp_path / "outputs").rglob("table_*.csv"))[1])] == list("123456")


@pytest.mark.slow
def test_a_blank_seed_is_drawn_stored_and_used_again(script: Script, tmp_path: Path) -> None:
    for _ in range(2):
        assert script("seed=", "impl.checkpoint.name=mine") == 0
    seed = load_checkpoint(tmp_path / "checkpoints" / "mine.pth")["seed"]
    assert f"seed: {seed}" in (run_folders(tmp_path)[-1] / "config.yaml").read_text()
    assert script("seed=") == 0
    assert load_checkpoint(run_folders(tmp_path)[-1] / "checkpoint.pth")["seed"] != seed


def test_a_dry_run_leaves_nothing(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("dryrun=True", "impl.checkpoint.name=mine", "hyp.evaluate_ema=True") == 0
    assert "max_val_acc" in capsys.readouterr().out
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "tables").exists()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["log.txt"]


@pytest.mark.slow
def test_a_sweep_goes_on_without_its_console(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, str(SCRIPT), *LINEAR, "-m", "name=é,b"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, cwd=tmp_path, env=environment, stdout=full, stderr=writer, check=False)
    os.close(writer)
    assert ended.returncode == 0
    assert [row["name"] for row in rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")] == ["é", "b"]
    attempts = Ledger(tmp_path / "tables" / "ledger.sqlite").attempts()
    assert [attempt.state for attempt in attempts] == [State.FINISHED, State.FINISHED]
    for attempt in attempts:
        log = (attempt.folder / "log.txt").read_text(encoding="utf-8")
        assert "standard output: no space left on device; the job goes on" in log
        assert "done: all 4 steps are taken" in log


def test_divergence_ends_with_status_3_and_a_row(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["hyp.optim.lr=1e30", "hyp.grad_clip=", "hyp.warmup=1", "impl.checkpoint.name=mine"]
    assert script(*arguments, drawn=True) == 3  # rows that are not all there make an image, too
    assert next(tmp_path.rglob("curves_*.png")).read_bytes().startswith(b"\x89PNG")
    assert "is not finite" in (shown := capsys.readouterr().err)
    assert "the last good checkpoint is checkpoints/mine.pth" in shown
    (run,) = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    assert run["status"].startswith("diverged: step ")
    rows = load_checkpoint(tmp_path / "checkpoints" / "mine.pth")["state"]["rows"]
    assert 1 <= len(rows) < 4


def test_divergence_of_the_first_step_is_told_and_recorded(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("hyp.optim.lr=1e38", "hyp.warmup=0", "hyp.grad_clip=", "hyp.grad_reg.block_strength=0") == 3
    assert "the last good checkpoint is none, the first step diverged" in capsys.readouterr().err
    (run,) = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    assert run["status"].startswith("diverged: step 1 is not finite")
    assert run["steps_taken"] == "0"
    assert report.main([str(tmp_path)]) == 0
    assert "diverged" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_records_failures_and_goes_on(script: Script, tmp_path: Path) -> None:
    assert script("hyp.optim.lr=1e30,0.1", "hyp.grad_clip=", "seed=1,2", "-m") == 3
    runs = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    assert [run["status"].split(":")[0] for run in runs] == ["diverged", "diverged"] + ["all 4 steps are taken"] * 2
    assert [run["seed"] for run in runs] == ["1", "2", "1", "2"]
    assert len(list((tmp_path / "outputs").glob("*/*/[0-3]/log.txt"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["hyp=base_sgd", "hyp.steps=2", "hyp.sample_with_replacement=True", "hyp.blocks_per_update=2"],
        ["hyp.train_switch_stochastic=2", "hyp.only_linear_layers_weight_decay=True"],
        ["hyp.test_time_flips=True", "hyp.recalibrate_batchnorm=True", "hyp.evaluate_ema=True"],
        ["hyp.loss_modification=squared", "hyp.label_smoothing=0.1", "hyp.test_time_flips=True"],
        ["hyp.loss_modification=maxup-2", "hyp.sub_batch=7", "hyp.label_noise=0.2", "data.batch_size=15"],
        ["hyp.loss_modification=batch-maxup", "hyp.batch_clip=1.0", "hyp.grad_clip_norm=inf"],
        ["hyp.grad_reg.acc_strength=0.3", "hyp.grad_reg.implementation=autograd", "hyp.gradient_average=moving"],
        ["hyp.norm_bias.strength=0.01", "hyp.norm_bias.bias=3", "hyp.grad_noise.additive=0.01"],
        ["hyp/optim=adam", "hyp.optim.lr=1e-3", "hyp.grad_noise.multiplicative=0.1", "hyp.shuffle=True"],
        ["hyp/optim=lbfgs", "hyp.grad_clip=", "data.augmentations_train=", "impl.check_determinism=True"],
        ["hyp.optim.line_search=wolfe", "hyp.grad_reg.block_strength=0", "hyp/optim_modification=LARS"],
        ["hyp/optim=fista", "hyp/optim_modification=ASAM", "hyp.optim_modification.rho=0.1", "hyp.evaluate_ema=True"],
        ["hyp/optim=gd_agc", "hyp.optim.lr=0.1", "hyp.only_linear_layers_weight_decay=True"],
        ["impl.dtype=double", "impl.memory=channels_last", "data.caching=ram", "impl.deterministic=True"],
        ["impl.mixed_precision=True", "impl.accumulation_dtype=double", "data.normalize=False"],
        ["data.augmentations_train=", "data.caching=False", "impl.persistent_workers=False", "hyp.max_evaluations=4"],
        ["data.augmentations_val={CenterCrop: 6}", "data.augmentations_train={RandomRotation: 10, CenterCrop: 6}"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_switch_trains(script: Script, tmp_path: Path, arguments: list[str]) -> None:
    assert script(*arguments) == 0
    rows = rows_of(next((tmp_path / "outputs").rglob("table_*.csv")))
    assert float(rows[-1]["valid_loss"]) > 0
    assert len(rows) == (3 if "max_evaluations" in str(arguments) else 2 if "hyp.steps=2" in arguments else 4)


@pytest.mark.slow
def test_noise_in_labels_and_copies_without_augmentation_are_announced(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = ["hyp.label_noise=0.3", "hyp.loss_modification=maxup-3", "data.augmentations_train=", "hyp.steps=1"]
    assert script(*noise) == 0
    shown = capsys.readouterr()
    assert re.search(r"label noise 0\.3: 1\d of 60 training labels replaced", shown.out)
    assert "maxup-3: without data.augmentations_train all copies of a sample are equal" in shown.err


def test_softmax_regression_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run_in_process(monkeypatch, tmp_path, *LINEAR) == 0


def modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


@pytest.mark.slow
def test_a_signal_saves_and_the_run_continues_bitwise(script: Script, tmp_path: Path) -> None:
    arguments = [*SMALL, "hyp.steps=30", "impl.checkpoint.name=mine", "impl.checkpoint.save_every_nth_step=10"]
    path, before = tmp_path / "checkpoints" / "mine.pth", 1
    for number in (signal.SIGINT, signal.SIGTERM):
        process, saved = start(tmp_path, *arguments), modified(path)
        shown = signal_when(process, lambda saved=saved: modified(path) > saved, number)
        assert process.returncode == 128 + number
        assert f"{number.name}: saving soon, then stopping" in shown
        assert re.search(r"paused (after step \d|inside step \d+ \(pass \d, \d of 3 blocks\))", shown)
        assert "Traceback" not in shown
        step = len(load_checkpoint(path)["state"]["rows"])
        assert before <= step < 30
        before = step
    assert script(*arguments[len(SMALL) :]) == 0
    assert script("hyp.steps=30") == 0
    continued = load_checkpoint(path)["state"]["model"]
    uninterrupted = load_checkpoint(run_folders(tmp_path)[-1] / "checkpoint.pth")["state"]["model"]
    assert all(torch.equal(continued[key], value) for key, value in uninterrupted.items())


@pytest.mark.soak
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.5, 1.0])
def test_a_killed_run_loses_at_most_the_steps_since_the_last_save(script: Script, tmp_path: Path, delay: float) -> None:
    import time

    process = start(tmp_path, *SMALL, "hyp.steps=200", "impl.checkpoint.name=mine")
    path = tmp_path / "checkpoints" / "mine.pth"
    signal_when(process, lambda: path.exists() and (time.sleep(delay) is None), signal.SIGKILL)
    assert len(load_checkpoint(path)["state"]["rows"]) >= 1
    assert script("hyp.steps=200", "impl.checkpoint.name=mine") == 0
    assert script("hyp.steps=200") == 0
    continued = load_checkpoint(path)["state"]["model"]
    uninterrupted = load_checkpoint(run_folders(tmp_path)[-1] / "checkpoint.pth")["state"]["model"]
    assert all(torch.equal(continued[key], value) for key, value in uninterrupted.items())
