"""``impl.deterministic=True``: two runs leave the same bits, whatever the fast path."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from running import SMALL, rows_of, run_in_process, start
from states import TIMES, assert_equal_states, without_times

from fullbatch.training.checkpoint import load_checkpoint

ALL = ["impl.deterministic=True", "hyp.shuffle=True", "hyp.optim.lr=0.4", "impl.validate_every_nth_step=2"]
"""With augmentation, gradient regularizer and clip, as ``hyp=gradreg`` on digits has them."""
STOCHASTIC = ["hyp.train_stochastic=True", "hyp.evaluate_ema=True"]


@pytest.fixture(autouse=True)
def _flags() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def result(folder: Path) -> tuple[Any, list[dict[str, str]]]:
    """Return the state of the last checkpoint and the table, without what clocks say."""
    (table,) = folder.glob("outputs/*/*/table_*.csv")
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in rows_of(table)]
    state = load_checkpoint(table.parent / "checkpoint.pth")["state"]
    return {**state, "rows": without_times(state["rows"])}, rows


def assert_same_bits(first: Path, second: Path) -> None:
    (state, rows), (other_state, other_rows) = result(first), result(second)
    assert_equal_states(state, other_state)
    assert rows == other_rows
    assert len(rows) == 4


def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / name for name in ("first", "second")]
    for folder in made:
        folder.mkdir()
    return made


@pytest.mark.parametrize(
    ("mode", "memory", "mixed_precision"),
    [
        ([], "contiguous", False),
        pytest.param([], "channels_last", True, marks=pytest.mark.slow),
        pytest.param([], "contiguous", True, marks=pytest.mark.slow),
        pytest.param([], "channels_last", False, marks=pytest.mark.slow),
        pytest.param(STOCHASTIC, "contiguous", False, marks=pytest.mark.slow),
        pytest.param(STOCHASTIC, "channels_last", True, marks=pytest.mark.slow),
    ],
)
def test_two_runs_have_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: list[str], memory: str, mixed_precision: bool
) -> None:
    options = [*SMALL, *ALL, *mode, f"impl.memory={memory}", f"impl.mixed_precision={mixed_precision}"]
    for number, folder in enumerate(both := folders(tmp_path)):
        torch.use_deterministic_algorithms(False)
        torch.manual_seed(number)  # of the generator that a process finds
        assert run_in_process(monkeypatch, folder, *options) == 0
        assert torch.are_deterministic_algorithms_enabled()
    assert_same_bits(*both)


def in_processes_of_their_own(tmp_path: Path, *options: str) -> None:
    both = folders(tmp_path)
    for process in [start(folder, *SMALL, *ALL, *options) for folder in both]:
        shown, _ = process.communicate(timeout=600)
        assert process.returncode == 0, shown
    assert_same_bits(*both)


@pytest.mark.slow
def test_two_processes_with_several_threads_have_the_same_bits(tmp_path: Path) -> None:
    in_processes_of_their_own(tmp_path, "impl=fast", "impl.threads=2", "data.caching=False")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("path", [[], ["impl.memory=channels_last"], ["impl.mixed_precision=True"], ["impl=fast"]])
@pytest.mark.parametrize("mode", [[], STOCHASTIC], ids=["full", "stochastic"])
def test_two_runs_on_the_gpu_have_the_same_bits(tmp_path: Path, mode: list[str], path: list[str]) -> None:
    in_processes_of_their_own(tmp_path, *path, *mode, "impl.device=cuda")
