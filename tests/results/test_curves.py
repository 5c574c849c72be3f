"""The figure of the curves of a run."""

from pathlib import Path

import pytest
from small_training import trainer

from fullbatch.results.curves import draw_curves


@pytest.mark.parametrize(
    ("steps", "form", "start"), [(1, "png", b"\x89PNG"), (5, "pdf", b"%PDF"), (5, "SVG", b"<?xml")]
)
def test_curves_are_a_figure_of_the_format_of_the_suffix(tmp_path: Path, steps: int, form: str, start: bytes) -> None:
    some_trainer = trainer(steps, validate_every=2)
    some_trainer.run()
    draw_curves(some_trainer.state.rows, tmp_path / f"curves.{form}", "a run")
    assert (tmp_path / f"curves.{form}").read_bytes().startswith(start)
    with pytest.raises(ValueError, match=r"a\.jpg: unknown format; accepted: \.png, \.pdf, \.svg$"):
        draw_curves(some_trainer.state.rows, tmp_path / "a.jpg", "a run")
