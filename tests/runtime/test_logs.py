"""Logs of a run: lines where there is no terminal, a bar where there is one."""

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from fullbatch.runtime.logs import ProgressBar, job_log, progress

ROW = {"step": 3, "train_loss": 0.5, "train_acc": 0.25, "lr": 0.1, "train_time": 1.5}


def test_messages_reach_the_terminal_and_with_times_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with job_log(tmp_path / "log.txt"):
        logging.getLogger("fullbatch.some.where").info("hello [not markup]")
        logging.getLogger("fullbatch").warning("beware")
    logging.getLogger("fullbatch").info("nobody listens")
    captured = capsys.readouterr()
    assert captured.out == "hello [not markup]\n"
    assert captured.err == "beware\n"
    first, second = (tmp_path / "log.txt").read_text().splitlines()
    assert first.endswith("INFO hello [not markup]")
    assert second.endswith("WARNING beware")


def test_text_is_never_markup_or_a_control_sequence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "[/data/mirror] x[gn] :x: {braces} \x1b[31m \u202e\r"
    shown = "[/data/mirror] x[gn] :x: {braces} \\x1b[31m \\u202e\\r"
    with job_log(tmp_path / "log.txt"):
        logging.getLogger("fullbatch").info(text)
    assert capsys.readouterr().out == f"{shown}\n"
    assert (tmp_path / "log.txt").read_text().endswith(f" INFO {shown}\n")
    with progress(text, 2) as advance:
        advance(1)


def test_without_a_terminal_validated_steps_are_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fullbatch")
    with ProgressBar(Console(file=io.StringIO()), steps=9) as bar:
        bar({**ROW, "valid_acc": 0.75})
        bar(ROW)
    assert [record.getMessage() for record in caplog.records] == [
        "step 3/9  loss 0.5000  train 25.00%  valid 75.00%  lr 0.1  (1.50 s)"
    ]


def test_on_a_terminal_the_bar_shows_loss_accuracy_rate_and_remaining_time() -> None:
    screen = io.StringIO()
    with ProgressBar(Console(file=screen, force_terminal=True, width=120), steps=9) as bar:
        bar(ROW)
    shown = screen.getvalue()
    assert all(text in shown for text in ("3/9", "loss 0.5000", "train 25.00%", "lr 0.1", "-:--:--"))
