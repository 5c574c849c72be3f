"""Configurations in which one part occurs many times are counted without being expanded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed_tree

from fullbatch.app.hydra_cli import train
from fullbatch.models.model_file import CHECKPOINT_FORMAT, check_checkpoint, read_pickle
from fullbatch.runtime.nesting import BadConfigurationError, require_bounded
from fullbatch.settings.parse import read_settings

LEVELS = 30
BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, LEVELS))
MERGED = "a0: &a0 {b: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, LEVELS)
)
FILES: dict[str, bytes] = {
    "bomb": BOMB.encode(),
    "merged": MERGED.encode(),
    "itself": b"a: &a [*a]\n",
    "large": b"a: " + b"x" * (1 << 20),
    "binary": b"a: \xff\n",
    "no YAML": b"a: b: c\n",
    "control": b"a: \x01\n",
}


def test_a_configuration_is_small() -> None:
    require_bounded(composed_tree(), "it")


def bomb() -> Any:
    """A tree that takes gigabytes when its parts are copied."""
    tree: Any = 1
    for _ in range(LEVELS):
        tree = {"a": [tree] * 10}
    return tree


def test_parts_are_counted_as_often_as_they_occur() -> None:
    deep: Any = []
    for _ in range(10_000):
        deep = [deep]
    itself: list[Any] = []
    itself.append(itself)
    for content in (bomb(), deep, itself):
        with pytest.raises(BadConfigurationError, match="mine: not a configuration"):
            require_bounded(content, "mine")


def test_files_are_refused_before_they_are_expanded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in FILES.items():
        path = tmp_path / name / "more" / "config.yaml"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path}: not (a|the) configuration"):
            read_settings(path)
        for option in ([f"--config-dir={tmp_path / name}"], ["-cd", str(tmp_path / name)]):
            assert train([*option, "+more=config", "plan=True"]) in (1, 2)
            shown = capsys.readouterr().err
            assert len(shown.splitlines()) == 1
            assert "not a configuration" in shown or name == "large"


def test_a_checkpoint_with_such_a_configuration_is_refused(tmp_path: Path) -> None:
    content = {"format": CHECKPOINT_FORMAT, "version": 1, "config": {"data": bomb()}, "state": {}}
    torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(ValueError, match=r"mine\.pth: .*nested too deeply"):
        check_checkpoint(tmp_path / "mine.pth", read_pickle(tmp_path / "mine.pth"))
