"""The README is true: its snippets run, its tables name what there is."""

import re

import pytest
from composing import CONFIG, ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == 2


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs(snippet: str) -> None:
    exec(compile(snippet, "README.md", "exec"), {})


@pytest.mark.parametrize("group", ["data", "model", "hyp", "hyp/optim", "hyp/optim_modification", "impl"])
def test_the_map_lists_the_choices_of_a_group(group: str) -> None:
    (row,) = re.findall(rf"^\| `{group}` \|(.*)\|$", TEXT, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == {path.stem for path in (CONFIG / group).glob("*.yaml")}


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
