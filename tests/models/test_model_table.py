"""The table of models in the documentation."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from composing import CONFIG, ROOT

GENERATOR: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "model_table.py"))
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
LINES = {line.split("`")[1]: line for line in PAGE.splitlines() if line.startswith("| `") and "=" not in line[:10]}


def test_every_model_has_a_row() -> None:
    foreign = ("torchvision", "timm", "import")
    assert {*LINES} >= {path.stem for path in Path(CONFIG / "model").glob("*.yaml") if path.stem not in foreign}
    assert list(LINES) == list(GENERATOR["rows"]())
    assert PAGE.startswith(GENERATOR["HEADER"])
    assert PAGE.endswith("|\n" + GENERATOR["FOOTER"])


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    assert GENERATOR["table"]() == PAGE
