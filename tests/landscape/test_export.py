"""Files of surfaces: numbers that are read back, figures, and a log line where a library is missing."""

import csv
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from fullbatch.landscape.export import FORMATS, save_surface
from fullbatch.landscape.grid import POINT, Axis, Grid
from fullbatch.landscape.surface import Surface


def surface(grid: Grid, steep: bool = False, **changes: np.ndarray) -> Surface:
    points = np.array(grid.points()).reshape(*grid.shape, 2)
    loss = (points**2 * (1, 2)).sum(axis=-1) + 0.25 * points[..., 0]
    loss = np.exp(5 * loss) if steep else loss
    arrays = {"loss": loss, "accuracy": 1 / (1 + loss), "full_loss": loss + 1, **changes}
    return Surface(grid, **arrays, labels=("first", "second"), path=((0.0, 0.0), (0.5, 0.5)), connected=True)


LINE, PLANE = Grid(Axis(-1, 1, 5), POINT), Grid(Axis(-1, 1, 4), Axis(-2, 2, 3))
NOT_FINITE = np.array([[1.0, np.inf, 2.0], [np.nan, 1.0, 3.0], [1.0, 1.5, -np.inf], [4.0, 5.0, 6.0]])
SURFACES = {
    "line": surface(LINE),
    "steep line": surface(LINE, steep=True),
    "line along y": surface(Grid(POINT, Axis(-1, 1, 3))),
    "point": surface(Grid(POINT, POINT)),
    "plane": surface(PLANE),
    "steep plane": surface(PLANE, steep=True),
    "without accuracy": surface(PLANE, accuracy=np.full((4, 3), np.nan), full_loss=np.full((4, 3), np.nan)),
    "overflowing": surface(PLANE, loss=NOT_FINITE),
    "level": surface(PLANE, loss=np.ones((4, 3)), accuracy=np.ones((4, 3))),
    "nothing finite": surface(PLANE, loss=np.full((4, 3), np.nan)),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_every_surface_can_be_saved_in_every_format(tmp_path: Path, form: str) -> None:
    starts = {
        "png": b"\x89PNG",
        "pdf": b"%PDF",
        "svg": b"<?xml",
        "html": b"<!doctype html>",
        "vtk": b"# vtk DataFile Version 3.0\na title\nASCII\n",
        "csv": b"x\ty\t",
    }
    for name, some in SURFACES.items():
        path = tmp_path / f"{name}.{form}"
        assert save_surface(some, path, "a title")
        assert path.read_bytes().lower().startswith(starts[form].lower())


def test_tables_contain_all_digits(tmp_path: Path) -> None:
    some = SURFACES["plane"]
    save_surface(some, tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(float(row["x"]), float(row["y"])) for row in rows] == PLANE.points()
    for name, array in some.quantities().items():
        assert [float(row[name]) for row in rows] == array.reshape(-1).tolist()
    save_surface(SURFACES["without accuracy"], tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text().splitlines()[0] == "x\ty\tloss"


@pytest.mark.parametrize("name", ["plane", "line", "overflowing"])
def test_a_structured_grid_is_read_back(tmp_path: Path, name: str) -> None:
    some = SURFACES[name]
    save_surface(some, tmp_path / "s.vtk")
    text = (tmp_path / "s.vtk").read_text()
    nx, ny = some.grid.shape
    assert f"DATASET STRUCTURED_GRID\nDIMENSIONS {nx} {ny} 1\nPOINTS {nx * ny} double\n" in text
    assert not re.search(r"nan|inf", text)
    numbers = text.split("double\n")[1].split("POINT_DATA")[0].split()
    points = np.array(numbers, dtype=float).reshape(ny, nx, 3)  # x runs fastest
    np.testing.assert_array_equal(points[0, :, 0], some.grid.x.values())
    np.testing.assert_array_equal(points[:, 0, 1], some.grid.y.values())
    finite = np.isfinite(some.loss)
    np.testing.assert_array_equal(points[..., 2].T[finite], some.loss[finite])
    assert (points[..., 2].T[~finite] == some.loss[finite].max()).all()
    scalars = dict(re.findall(r"SCALARS (\w+) double 1\nLOOKUP_TABLE default\n([^A-Z]+)", text))
    assert scalars.keys() == {"loss", "accuracy", "full_loss"}
    accuracy = np.array(scalars["accuracy"].split(), dtype=float).reshape(ny, nx).T
    np.testing.assert_array_equal(accuracy, some.accuracy)


def test_a_page_needs_no_network(tmp_path: Path) -> None:
    save_surface(SURFACES["plane"], tmp_path / "s.html", "a title")
    page = (tmp_path / "s.html").read_text()
    assert not re.search(r"<script[^>]* src=", page)
    assert "a title" in page


@pytest.mark.parametrize(("form", "library", "extra"), [("png", "matplotlib", "plot"), ("html", "plotly", "html")])
def test_a_missing_library_is_logged_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    form: str,
    library: str,
    extra: str,
) -> None:
    caplog.set_level(logging.INFO)
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)

    class Absent:
        def find_spec(self, name: str, *_: object) -> None:
            if name.split(".", maxsplit=1)[0] == library:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    assert not save_surface(SURFACES["line"], tmp_path / f"s.{form}")
    (line,) = caplog.messages
    assert line == f"no s.{form}: {library} is not installed (pip install 'fullbatch[{extra}]')"


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"s\.gif: unknown format; accepted: \.png, \.pdf, \.svg, \.html, \.vtk, \.csv$"
    ):
        save_surface(SURFACES["line"], tmp_path / "s.gif")
