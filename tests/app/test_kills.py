"""``kill -9`` at any moment: the run continues, and its bits are those of a run that was never killed."""

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import MOMENTS
from running import SCRIPT, SMALL, run_in_process
from states import assert_equal_states

from fullbatch.runtime.locks import claimed
from fullbatch.training.checkpoint import load_checkpoint
from fullbatch.training.tables import read_table

NAMED = "impl.checkpoint.name=mine"
EVERYTHING = ["hyp.evaluate_ema=True", "hyp.grad_noise.additive=0.01", "impl.validate_every_nth_step=3"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    return lambda *arguments: run_in_process(monkeypatch, tmp_path, *SMALL, *EVERYTHING, *arguments)


def killed(folder: Path, moment: str, count: int, *arguments: str) -> int:
    """Run until the kill; return the exit status."""
    killing = Path(__file__).parent.parent / "killing.py"
    command = [sys.executable, str(killing), moment, str(count), str(SCRIPT), *SMALL, *EVERYTHING, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode


def assert_as_never_killed(script: Callable[..., int], folder: Path, steps: str) -> None:
    """Finish the named run, run another one without kills, and compare everything but the times."""
    assert script(NAMED, steps) == 0
    assert script("impl.checkpoint.name=uninterrupted", steps) == 0
    resumed, expected = (
        load_checkpoint(folder / "checkpoints" / f"{name}.pth")["state"] for name in ("mine", "uninterrupted")
    )
    assert_equal_states(resumed, expected)
    assert len(read_table(folder / "tables" / "table_fb_digits_runs.csv")) == 2
    last_life = sorted((folder / "outputs").glob("*/*"))[-2]
    (table,) = last_life.glob("table_*_results.csv")
    assert [row["step"] for row in read_table(table)] == [str(row["step"]) for row in expected["rows"]]


def survive(script: Callable[..., int], folder: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    steps = f"hyp.steps={8 * kills}"
    moments = [*MOMENTS, *chance.choices(MOMENTS, k=kills - len(MOMENTS))]
    for moment in moments:
        ended = killed(folder, moment, chance.randint(2, 6), NAMED, steps)
        assert ended in (-signal.SIGKILL, 0)
    assert ended == -signal.SIGKILL
    assert_as_never_killed(script, folder, steps)


@pytest.mark.slow
def test_five_kills_change_no_bit(script: Callable[..., int], tmp_path: Path) -> None:
    survive(script, tmp_path, kills=5, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 6))
def test_ten_kills_change_no_bit(script: Callable[..., int], tmp_path: Path, seed: int) -> None:
    survive(script, tmp_path, kills=10, seed=seed)


def test_two_runs_cannot_share_a_checkpoint(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with claimed(tmp_path / "checkpoints" / "mine.pth"):
        assert script(NAMED) == 2
        assert "checkpoints/mine.pth: another run is using this checkpoint" in capsys.readouterr().err
    assert script(NAMED, "hyp.steps=1") == 0


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_continues(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("hyp.steps=5", "hyp.scheduler=")
    assert script(NAMED, *arguments) == 0
    newest, previous, aside = (tmp_path / "checkpoints" / f"mine{kind}.pth" for kind in ("", ".previous", ".damaged"))
    whole = newest.read_bytes()
    spoiled = [whole[:-1000], bytearray(whole)]
    spoiled[1][len(whole) // 2] ^= 4
    for content in spoiled:
        newest.write_bytes(content)
        capsys.readouterr()
        assert script(NAMED, *arguments) == 0
        shown = capsys.readouterr()
        warning = (
            r"checkpoints/mine\.pth: damaged or truncated \(.*\); .*continuing with checkpoints/mine\.previous\.pth"
        )
        assert re.search(warning, shown.out + shown.err)
        assert aside.read_bytes() == content
        assert len(load_checkpoint(previous)["state"]["rows"]) == 4
    assert script("impl.checkpoint.name=uninterrupted", *arguments) == 0
    resumed, expected = (
        load_checkpoint(newest.with_name(f"{name}.pth"))["state"] for name in ("mine", "uninterrupted")
    )
    assert_equal_states(resumed, expected)
    previous.unlink()
    newest.write_bytes(spoiled[0])
    assert script(NAMED, *arguments) == 2
    assert re.search(r"^checkpoints/mine\.pth: damaged or truncated", capsys.readouterr().err, re.MULTILINE)
    assert newest.read_bytes() == spoiled[0]
