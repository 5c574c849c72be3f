"""The documentation is correct: its code runs, its table of groups is complete, its commands and links exist."""

import re
import shlex
from pathlib import Path

import pytest
from composing import CONFIG, ROOT
from running import run_in_process

from fullbatch.__main__ import COMMANDS

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", snippets(README))
def test_each_snippet_of_the_readme_runs_alone(snippet: str) -> None:
    exec(compile(snippet, "README.md", "exec"), {"__name__": "snippet"})


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if snippets(page.read_text(encoding="utf-8"))], ids=str)
def test_the_snippets_of_a_page_run_in_order(page) -> None:  # type: ignore[no-untyped-def]
    names = {"__name__": "snippet"}
    for snippet in snippets(page.read_text(encoding="utf-8")):
        exec(compile(snippet, page.name, "exec"), names)


def test_pages_have_snippets() -> None:
    assert len(snippets(README)) >= 3
    for task in ("regularizer", "exact_gradient", "extending", "landscape"):
        assert len(snippets((ROOT / "docs" / f"{task}.md").read_text(encoding="utf-8"))) >= 3


@pytest.mark.parametrize(
    "group",
    ["data", "data/db", "model", "hyp", "hyp/optim", "hyp/optim_modification", "impl", "impl/setup", "analysis", "viz"],
)
def test_the_table_of_groups_is_complete(group: str) -> None:
    (row,) = re.findall(rf"^\| `{group}` \|(.*)\|$", README, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == {path.stem for path in (CONFIG / group).glob("*.yaml")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page) -> None:  # type: ignore[no-untyped-def]
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_commands_exist() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    commands = set(re.findall(r"python -m fullbatch ([a-z][\w-]*)", pages))
    assert {"inspect", "page", "report", "status"} <= commands <= COMMANDS.keys()


def test_the_example_of_bring_your_own_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "bring_your_own.md").read_text(encoding="utf-8")
    (tmp_path / "my_code.py").write_text(snippets(page)[0], encoding="utf-8")
    (command,) = re.findall(r"```bash\npython train_with_gradient_descent.py (.*)\n```", page)
    smaller = ["data.size=60", "data.valid_size=40", "hyp.steps=3", "hyp.warmup=0", "impl.device=cpu", "impl.threads=1"]
    assert run_in_process(monkeypatch, tmp_path, *shlex.split(command), *smaller) == 0
    (table,) = tmp_path.glob("outputs/**/table_*_convergence_results.csv")
    columns, *rows = [line.split("\t") for line in table.read_text().splitlines()]
    assert float(rows[2][columns.index("train_loss")]) < float(rows[0][columns.index("train_loss")])
    assert float(rows[2][columns.index("largest_weight")]) > 0
