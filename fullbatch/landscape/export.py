"""Surfaces as files: CSV, VTK for ParaView, interactive HTML, figures."""

import csv
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fullbatch.landscape.plotting import BLUE, GREEN, NAMES, ORANGE, draw_surface, finite, is_steep, line_of
from fullbatch.landscape.surface import Surface
from fullbatch.runtime import figures
from fullbatch.runtime.files import write_atomically
from fullbatch.runtime.plain_text import html_text

log = logging.getLogger(__name__)

_EXTRAS = {"matplotlib": "plot", "plotly": "html"}


def write_csv(surface: Surface, path: Path, title: str = "") -> None:
    """Write one row per point, tab-separated: x, y and the values with all digits; missing values are empty."""
    values = {name: array.reshape(-1) for name, array in surface.quantities().items()}
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["x", "y", *values])
    for number, point in enumerate(surface.grid.points()):
        row = [float(array[number]) for array in values.values()]
        writer.writerow([*point, *("" if np.isnan(value) else value for value in row)])
    write_atomically(path, text.getvalue().encode())


def write_vtk(surface: Surface, path: Path, title: str = "") -> None:
    """Write a structured grid in the legacy format: points (x, y, loss), and the values as scalars, x running fastest.

    The format has no infinity: values that are not finite are replaced by the largest finite one.
    """
    values = {}
    for name, array in surface.quantities().items():
        finite_values = array[np.isfinite(array)]
        values[name] = np.where(np.isfinite(array), array, finite_values.max() if finite_values.size else 0.0)
    xs, ys = surface.grid.x.values(), surface.grid.y.values()
    vertices = [(x, y, float(values["loss"][i, j])) for j, y in enumerate(ys) for i, x in enumerate(xs)]
    points = "\n".join(f"{x!r} {y!r} {height!r}" for x, y, height in vertices)
    nx, ny = surface.grid.shape
    header = f"# vtk DataFile Version 3.0\n{title[:250] or 'loss landscape'}\nASCII\nDATASET STRUCTURED_GRID\n"
    parts = [f"{header}DIMENSIONS {nx} {ny} 1\nPOINTS {nx * ny} double\n{points}\nPOINT_DATA {nx * ny}"]
    for name, array in values.items():
        numbers = "\n".join(repr(float(value)) for value in array.T.reshape(-1))
        parts.append(f"SCALARS {name} double 1\nLOOKUP_TABLE default\n{numbers}")
    write_atomically(path, ("\n".join(parts) + "\n").encode())


def write_html(surface: Surface, path: Path, title: str = "") -> None:
    """Write an interactive page that needs no network: the line, or surface and contours side by side."""
    from plotly.subplots import make_subplots  # noqa: PLC0415

    if surface.grid.is_plane:
        figure = make_subplots(
            1, 2, specs=[[{"type": "surface"}, {"type": "xy"}]], horizontal_spacing=0.06, column_widths=[0.6, 0.4]
        )
        _add_plane(figure, surface)
    else:
        figure = make_subplots(specs=[[{"secondary_y": True}]])
        _add_line(figure, surface)
    figure.update_layout(title=html_text(title), template="plotly_white", legend={"orientation": "h", "y": 1.06})
    page = figure.to_html(include_plotlyjs=True, full_html=True, default_height="95vh")
    write_atomically(path, page.encode())


def _add_line(figure: Any, surface: Surface) -> None:
    from plotly.graph_objects import Scatter  # noqa: PLC0415

    coordinates, label, values = line_of(surface)
    styles = {"loss": (BLUE, "solid", 1.0), "full_loss": (GREEN, "dash", 1.0), "accuracy": (ORANGE, "solid", 100.0)}
    for name, array in values.items():
        color, dash, factor = styles[name]
        line = Scatter(x=coordinates, y=_plain(factor * array), name=NAMES[name], line={"color": color, "dash": dash})
        figure.add_trace(line, secondary_y=name == "accuracy")
    figure.update_xaxes(title_text=label)
    figure.update_yaxes(title_text="loss", type="log" if is_steep(values["loss"]) else "linear", secondary_y=False)
    figure.update_yaxes(title_text="accuracy (%)", range=[0, 105], tickmode="auto", showgrid=False, secondary_y=True)


def _add_plane(figure: Any, surface: Surface) -> None:
    from plotly import graph_objects as go  # noqa: PLC0415

    xs, ys = surface.grid.x.values(), surface.grid.y.values()
    steep = is_steep(surface.loss)
    height = np.log10(np.where(surface.loss > 0, surface.loss, np.nan)) if steep else surface.loss
    label = "log10 of the training loss" if steep else NAMES["loss"]
    rows = _plain(height.T)
    relief = go.Surface(x=xs, y=ys, z=rows, colorscale="Viridis", showscale=False, name=label)
    figure.add_trace(relief, row=1, col=1)
    bar = {"title": {"text": label, "side": "right"}}
    figure.add_trace(go.Contour(x=xs, y=ys, z=rows, colorscale="Viridis", colorbar=bar, name=label), row=1, col=2)
    marks = surface.path or ((0.0, 0.0),)
    mode = "lines+markers" if surface.connected else "markers"
    style = {"color": "white", "line": {"color": "black", "width": 1}, "size": 8}
    path = go.Scatter(
        x=[x for x, _ in marks], y=[y for _, y in marks], mode=mode, marker=style, line_color="white", showlegend=False
    )
    figure.add_trace(path, row=1, col=2)
    labels = [html_text(label) for label in (*surface.labels, "y")][:2]
    figure.update_xaxes(title_text=f"x: {labels[0]}", range=[xs[0], xs[-1]], row=1, col=2)
    figure.update_yaxes(title_text=f"y: {labels[1]}", range=[ys[0], ys[-1]], row=1, col=2)
    camera = {"eye": {"x": -1.4, "y": -1.6, "z": 1.1}}
    figure.update_scenes(xaxis_title="x", yaxis_title="y", zaxis_title=label, aspectmode="cube", camera=camera)


def _plain(values: np.ndarray) -> Any:
    """Return nested lists with None for values that are not finite, as JSON needs."""
    return json.loads(json.dumps(finite(values).tolist()).replace("NaN", "null"))


FORMATS: dict[str, Callable[[Surface, Path, str], None]] = {
    **dict.fromkeys(figures.FORMATS, draw_surface),
    "html": write_html,
    "vtk": write_vtk,
    "csv": write_csv,
}


def save_surface(surface: Surface, path: str | Path, title: str = "") -> bool:
    """Write a surface in the format of the path's suffix: .png, .pdf, .svg, .html, .vtk or .csv.

    Returns whether it was written: if the library of a format is not installed, that is logged.

    Raises:
        ValueError: for another suffix.
    """
    path = Path(path)
    form = figures.require_format(path, tuple(FORMATS))
    try:
        FORMATS[form](surface, path, title)
    except ModuleNotFoundError as error:
        library = str(error.name).split(".", maxsplit=1)[0]
        if library not in _EXTRAS:
            raise
        extra = f"pip install 'fullbatch[{_EXTRAS[library]}]'"
        log.info("no %s: %s is not installed (%s)", path.name, library, extra)
        return False
    return True
