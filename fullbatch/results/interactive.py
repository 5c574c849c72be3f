"""Interactive figures of runs and landscapes for an HTML page, drawn with plotly (the ``html`` extra)."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fullbatch.analysis.figure import STYLES, top
from fullbatch.landscape.plotting import NAMES, finite, is_steep
from fullbatch.results.curves import PANELS
from fullbatch.results.recorded import LandscapeTable, RecordedRun
from fullbatch.runtime.plain_text import html_text
from fullbatch.training.state import Row

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colors that color-blind readers can distinguish, too (Okabe & Ito, 2008)."""
DASHES = ("solid", "dash", "dot", "dashdot")
KINDS = (
    ("training", "of blocks (r.m.s.)", "learning rate"),
    ("full objective", "of all data, regularized"),
    ("validation",),
)
"""Series of the panels, grouped by the dash they are drawn with."""
CURVES_LEGEND = (
    "training; gradient norm of blocks (r.m.s.); learning rate",
    "full objective; gradient norm of all data, regularized",
    "validation",
)
_SHARPNESS_DASHES = dict(zip(STYLES, ("solid", "dashdot", "dot", "dash"), strict=True))


def colors_of(runs: Sequence[RecordedRun]) -> dict[str, str]:
    """Return name -> color; more than seven runs share colors."""
    return {run.name: COLORS[number % len(COLORS)] for number, run in enumerate(runs)}


def draw_curves(runs: Sequence[RecordedRun]) -> str:
    """Draw losses, accuracies, gradient norms and learning rate: one dash per series, one color per run.

    The colors of a single run distinguish its series.
    """
    from plotly.subplots import make_subplots  # noqa: PLC0415

    figure = make_subplots(2, 2, horizontal_spacing=0.09, vertical_spacing=0.12)
    for number, (label, series, scale) in enumerate(PANELS):
        panel = {"row": number // 2 + 1, "col": number % 2 + 1}
        for column, name in series.items():
            kind = next(index for index, names in enumerate(KINDS) if name in names)
            for run, color in zip(runs, colors_of(runs).values(), strict=True):
                line = {"dash": DASHES[kind], "color": color if len(runs) > 1 else COLORS[kind], "width": 1.6}
                figure.add_trace(_curve(run.rows, column, f"{run.name}: {name}", line), **panel)
        figure.update_xaxes(title_text="step", **panel)
        figure.update_yaxes(title_text=label, type=scale, exponentformat="power", **panel)
    return _to_html(figure, 760)


def draw_sharpness(runs: Sequence[RecordedRun], colors: Mapping[str, str]) -> str:
    """Draw the sharpness and the stability threshold of the optimizer."""
    from plotly.graph_objects import Figure  # noqa: PLC0415

    figure = Figure()
    for run in runs:
        for column, (label, _, _) in STYLES.items():
            line = {"dash": _SHARPNESS_DASHES[column], "color": colors[run.name], "width": 1.6}
            figure.add_trace(_curve(run.rows, column, f"{run.name}: {label}", line))
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="curvature", range=[0, max(top(run.rows) for run in runs)])
    return _to_html(figure, 440)


def sharpness_legend(columns: Collection[str]) -> list[tuple[str, str]]:
    """Return label and dash of the measured columns."""
    return [(label, _SHARPNESS_DASHES[column]) for column, (label, _, _) in STYLES.items() if column in columns]


def draw_landscape(landscape: LandscapeTable) -> str:
    """Draw losses and accuracy along a line, or the contours of a plane."""
    from plotly.subplots import make_subplots  # noqa: PLC0415

    if min(len(landscape.xs), len(landscape.ys)) > 1:
        names = [str(name) for name in ("loss", "accuracy") if name in landscape.values]
        figure = make_subplots(1, len(names), horizontal_spacing=0.16)
        for number, name in enumerate(names):
            right = (number + 1) / len(names) - 0.08 * (len(names) - 1 - number)
            _add_contours(figure, landscape, name, right, number + 1)
        return _to_html(figure, 480)
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    coordinates = landscape.xs if len(landscape.xs) > 1 else landscape.ys
    for (name, values), color, dash in zip(landscape.values.items(), COLORS, DASHES, strict=False):
        scaled = 100 * values if name == "accuracy" else values
        scatter = _scatter(coordinates, scaled, NAMES.get(name, name), {"color": color, "dash": dash})
        figure.add_trace(scatter.update(showlegend=True), secondary_y=name == "accuracy")
    figure.update_xaxes(title_text="along the direction")
    scale = "log" if is_steep(landscape.values["loss"]) else "linear"
    figure.update_yaxes(title_text="loss", type=scale, exponentformat="power", secondary_y=False)
    figure.update_yaxes(title_text="accuracy (%)", range=[0, 105], tickmode="auto", showgrid=False, secondary_y=True)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})
    return _to_html(figure, 440)


def _add_contours(figure: Any, landscape: LandscapeTable, name: str, right: float, column: int) -> None:
    from plotly.graph_objects import Contour  # noqa: PLC0415

    values = landscape.values[name]
    title = NAMES[name]
    if name == "accuracy":
        values, title = 100 * values, f"{title} (%)"
    elif is_steep(values):
        values, title = np.log10(np.where(values > 0, values, np.nan)), f"log10 of the {title}"
    bar = {"title": {"text": title, "side": "right"}, "x": right, "xanchor": "left", "thickness": 14}
    x, y, z = to_lists(landscape.xs), to_lists(landscape.ys), to_lists(values.T)
    scale = "Cividis" if name == "accuracy" else "Viridis"
    contours = Contour(x=x, y=y, z=z, colorscale=scale, colorbar=bar, name=title)
    figure.add_trace(contours, row=1, col=column)
    figure.update_xaxes(title_text="x", row=1, col=column)
    figure.update_yaxes(title_text="y", row=1, col=column)


def _curve(rows: Sequence[Row], column: str, name: str, line: Mapping[str, Any]) -> Any:
    points = [(row["step"], row[column]) for row in rows if column in row]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return _scatter(steps, values, name, line)


def _scatter(x: np.ndarray, y: np.ndarray, name: str, line: Mapping[str, Any]) -> Any:
    from plotly.graph_objects import Scatter  # noqa: PLC0415

    mode = "lines+markers" if len(x) == 1 else "lines"
    values = {"x": to_lists(x), "y": to_lists(y.reshape(-1))}
    return Scatter(**values, name=html_text(name), line=line, mode=mode, showlegend=False)  # plotly shows HTML


def to_lists(values: np.ndarray) -> Any:
    """Return nested lists, with None for values that are not finite."""
    return json.loads(json.dumps(finite(values).tolist()).replace("NaN", "null"))


def _to_html(figure: Any, height: int) -> str:
    figure.update_layout(template="plotly_white", height=height, margin={"l": 70, "r": 20, "t": 30, "b": 55})
    figure.update_xaxes(ticks="outside", tickcolor="#bbb")
    figure.update_yaxes(ticks="outside", tickcolor="#bbb", nticks=7)
    to_html: Callable[..., str] = figure.to_html
    return to_html(full_html=False, include_plotlyjs=False, default_width="100%", config={"displaylogo": False})
