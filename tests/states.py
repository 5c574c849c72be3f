"""States of training runs, compared bitwise."""

from typing import Any

import torch

from fullbatch.runtime.stop_requests import StopRequest
from fullbatch.training.state import Row
from fullbatch.training.trainer import Trainer

TIMES = ("train_time", "valid_time", "analysis_time")


def run_to(some_trainer: Trainer, step: int) -> Trainer:
    """Run, interrupted after ``step`` steps."""
    some_trainer.request = lambda: StopRequest.STOP if some_trainer.state.step >= step else StopRequest.NONE
    some_trainer.run()
    return some_trainer


def without_times(rows: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def assert_equal_states(ours: Any, theirs: Any) -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            if key not in TIMES:
                assert_equal_states(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal_states(one, other)
    else:
        assert ours == theirs
