"""The HTML page: it shows the values of the tables, needs no network, and mistakes are one line."""

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullbatch.cli.page import main
from fullbatch.landscape.export import write_csv
from fullbatch.landscape.grid import Axis, Grid
from fullbatch.landscape.surface import Surface
from fullbatch.results.interactive import draw_curves
from fullbatch.results.recorded import RecordedRun, differing_keys, read_landscape, read_rows
from fullbatch.settings.parse import to_yaml
from fullbatch.training.tables import ConvergenceTable

ROWS = [
    {
        "step": 1,
        "train_loss": 2.5,
        "train_acc": 0.1,
        "valid_acc": 0.125,
        "lr": 0.1,
        "evaluations": 2,
        "train_time": 1.0,
    },
    {"step": 2, "train_loss": 1.5, "train_acc": 0.4, "lr": 0.1, "evaluations": 3, "train_time": 0.5},
    {"step": 3, "train_loss": 0.75, "train_acc": 0.8, "lr": 0.05, "evaluations": 2, "train_time": 1.0},
]
SHARP = {"sharpness": 12.25, "stability_threshold": math.inf}


def run(folder: Path, name: str, rows: list[dict[str, float]] = ROWS, **settings: Any) -> Path:
    folder.mkdir(parents=True)
    ConvergenceTable(folder / f"table_{name}_convergence_results.csv", rows)
    config = {"name": name, "hyp": {"steps": 3, "grad_clip": None, "optim": {"name": "gd", "lr": 0.1}, **settings}}
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return folder


def surface(folder: Path, nx: int, ny: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    grid = Grid(*(Axis(-1.0, 1.0, num) if num > 1 else Axis(0.0, 0.0, 1) for num in (nx, ny)))
    loss = np.arange(1.0, nx * ny + 1).reshape(nx, ny)
    loss[0, 0] = np.nan
    write_csv(Surface(grid, loss, loss / 100, np.full_like(loss, np.nan)), folder / "landscape_mine.csv")
    return folder


def written(tmp_path: Path, *folders: Path) -> str:
    target = tmp_path / "page.html"
    assert main([*map(str, folders), "--output", str(target)]) == 0
    return target.read_text(encoding="utf-8")


def cells(text: str) -> list[list[str]]:
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>.*?</tr>", text)]


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def test_results_are_the_last_values_and_sums(tmp_path: Path) -> None:
    text = written(tmp_path, run(tmp_path / "a", "first"))
    titles, values = cells(text)[:2]
    assert dict(zip(titles, values, strict=True)) == {
        "run": "first",
        "steps": "3",
        "validation accuracy": "12.50%",
        "training accuracy": "80.00%",
        "training loss": "0.75",
        "gradient evaluations": "7",
        "time (s)": "2.5",
        "folder": str(tmp_path / "a"),
    }
    assert headings(text) == ["Results after the last step", "Curves"]


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    text = written(tmp_path, run(tmp_path / "a", "first"))
    assert "plotly.js v" in text
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", text)


def test_curves_have_the_values_of_the_table(tmp_path: Path) -> None:
    table = run(tmp_path / "a", "first") / "table_first_convergence_results.csv"
    assert read_rows(table) == ROWS
    drawn = draw_curves([RecordedRun("first", tmp_path, read_rows(table))])
    points = re.findall(r'"name":"first: ([^"]*)".*?"x":(\[[^\]]*\]),"y":(\[[^\]]*\])', drawn)
    assert ("training", "[1.0,2.0,3.0]", "[2.5,1.5,0.75]") in points
    assert ("training", "[1.0,2.0,3.0]", "[0.1,0.4,0.8]") in points
    assert ("validation", "[1.0]", "[0.125]") in points
    assert ("learning rate", "[1.0,2.0,3.0]", "[0.1,0.1,0.05]") in points


def test_differences_of_configurations(tmp_path: Path) -> None:
    folders = run(tmp_path / "a", "first"), run(tmp_path / "b", "second", grad_clip=0.25)
    text = written(tmp_path, *folders)
    assert "Differences of the configurations" in headings(text)
    shown = cells(text[text.index("Differences of") :])[:4]
    assert shown[:3] == [["key", "first", "second"], ["name", "first", "second"], ["hyp.grad_clip", "", "0.25"]]
    settings = [{"a": "1", "b": "2"}, {"a": "1", "c": "3"}]
    assert differing_keys([RecordedRun("x", tmp_path, [], each) for each in settings]) == ["b", "c"]


def test_runs_of_the_same_name_are_distinguished_and_sweeps_are_searched(tmp_path: Path) -> None:
    for number in (0, 1):
        run(tmp_path / "sweep" / str(number), "same")
    text = written(tmp_path, tmp_path / "sweep", tmp_path / "sweep" / "1")
    assert [row[0] for row in cells(text)[1:3]] == ["same (sweep/0)", "same (sweep/1)"]
    assert len(cells(text[: text.index("Curves")])) == 3


def test_measured_sharpness_is_drawn(tmp_path: Path) -> None:
    text = written(tmp_path, run(tmp_path / "a", "first", [*ROWS[:2], {**ROWS[2], **SHARP}]))
    assert headings(text) == ["Results after the last step", "Curves", "Sharpness"]
    keys = re.findall(r"</svg>([^<]*)</span>", text[text.index("<h2>Sharpness") :])
    assert keys == ["sharpness", "threshold of the optimizer"]
    assert re.search(r'"name":"first: sharpness".*?"x":\[3.0\],"y":\[12.25\]', text)
    assert '"range":[0,15.3125]' in text  # not the threshold, which is infinite
    assert re.search(r'"name":"first: threshold of the optimizer".*?"y":\[null\]', text)


@pytest.mark.parametrize(("nx", "ny"), [(5, 1), (1, 4), (3, 4)])
def test_landscapes_are_read_from_their_tables(tmp_path: Path, nx: int, ny: int) -> None:
    read = read_landscape(surface(tmp_path / "a", nx, ny) / "landscape_mine.csv")
    expected = np.arange(1.0, nx * ny + 1).reshape(nx, ny)
    expected[0, 0] = np.nan
    np.testing.assert_array_equal(read.values["loss"], expected)
    np.testing.assert_array_equal((len(read.xs), len(read.ys)), (nx, ny))
    text = written(tmp_path, tmp_path / "a")
    assert headings(text) == ["Loss landscape: mine"]
    assert bool(re.search(r'"z":\[\[', text[text.index("</head>") :])) == (min(nx, ny) > 1)


def test_names_are_escaped(tmp_path: Path) -> None:
    text = written(tmp_path, run(tmp_path / "a", "<b>x&y"))
    assert "<h1>&lt;b&gt;x&amp;y</h1>" in text
    hostile = "\x1b</script><script>alert(1)"
    text = written(tmp_path, run(tmp_path / "b", hostile.replace("/", "")), surface(tmp_path / "c", 5, 1))
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert "b>x" not in draw_curves([RecordedRun("<b>x", tmp_path, ROWS)])  # plotly shows names as HTML


MISTAKES = {
    "absent": "absent: there is no such folder; run folders are outputs/<date>/<time>",
    "empty": "empty: no run here; run folders contain table_*_convergence_results.csv or landscape_*.csv",
    "words": "not a table of the steps of a run (could not convert string to float: 'one')",
    "bytes": "not a table of the steps of a run ('utf-8' codec can't decode",
    "headed": "not a table of the steps of a run (it has no rows)",
    "other": "not a table of the steps of a run (it has no column step)",
    "flat": "landscape_x.csv: not a table of a loss landscape (it has no column loss)",
    "holes": "landscape_x.csv: not a table of a loss landscape (cannot reshape",
    "yaml": "config.yaml: not the configuration of a run (",
}


@pytest.mark.parametrize(("name", "message"), MISTAKES.items())
def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    table, landscape = "table_x_convergence_results.csv", "landscape_x.csv"
    for folder, file, content in (
        ("words", table, b"step\tlr\none\t1\n"),
        ("bytes", table, b"step\n\xff\xfe\n"),
        ("headed", table, b"step\n"),
        ("other", table, b"lr\n1\n"),
        ("flat", landscape, b"x\ty\tdepth\n0\t0\t1\n"),
        ("holes", landscape, b"x\ty\tloss\n0\t0\t1\n1\t1\t1\n1\t0\t1\n"),
        ("empty", "notes.txt", b""),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(content)
    (run(tmp_path / "yaml", "x") / "config.yaml").write_text("a: [1")
    assert main([str(tmp_path / name), "--output", str(tmp_path / "page.html")]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_a_missing_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert main([str(run(tmp_path / "a", "first")), "--output", str(tmp_path / "page.html")]) == 2
    assert capsys.readouterr().err == "a page needs plotly, which is not installed (pip install 'fullbatch[html]')\n"
