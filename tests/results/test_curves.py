"""The figure of the curves of a run."""

from pathlib import Path

import pytest
from small_training import trainer

from fullbatch.results.curves import draw_curves


@pytest.mark.parametrize("steps", [1, 5])
def test_curves_are_a_image(tmp_path: Path, steps: int) -> None:
    some_trainer = trainer(steps, validate_every=2)
    some_trainer.run()
    draw_curves(some_trainer.state.rows, tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
