"""Interactive images of runs and landscapes, as parts of a page, with plotly (the ``html`` extra)."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fullbatch.analysis.figure import STYLES, top
from fullbatch.landscape.plotting import NAMES, finite, is_steep
from fullbatch.results.curves import PANELS
from fullbatch.results.recorded import Landscape, Recorded
from fullbatch.training.state import Row

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by colour-blind readers (Okabe & Ito, 2008)."""
DASHES = ("solid", "dash", "dot", "dashdot")
KINDS = (
    ("training", "of blocks (r.m.s.)", "learning rate"),
    ("full objective", "of all data, regularized"),
    ("validation",),
)
"""Series of the panels that are drawn alike, a dash each."""
CURVES_MEAN = (
    "training; gradient norm of blocks (r.m.s.); learning rate",
    "full objective; gradient norm of all data, regularized",
    "validation",
)
_DASH_OF = dict(zip(STYLES, ("solid", "dashdot", "dot", "dash"), strict=True))


def colors_of(runs: Sequence[Recorded]) -> dict[str, str]:
    """Return name -> colour; with more than seven runs, colours come again."""
    return {run.name: COLORS[number % len(COLORS)] for number, run in enumerate(runs)}


def curves(runs: Sequence[Recorded]) -> str:
    """Draw losses, accuracies, gradient norms and learning rate: a dash a series, a colour a run (of one, a series)."""
    from plotly.subplots import make_subplots  # noqa: PLC0415

    figure = make_subplots(2, 2, horizontal_spacing=0.09, vertical_spacing=0.12)
    for number, (label, series, scale) in enumerate(PANELS):
        place = {"row": number // 2 + 1, "col": number % 2 + 1}
        for column, name in series.items():
            kind = next(position for position, names in enumerate(KINDS) if name in names)
            for run, color in zip(runs, colors_of(runs).values(), strict=True):
                line = {"dash": DASHES[kind], "color": color if len(runs) > 1 else COLORS[kind], "width": 1.6}
                figure.add_trace(_line(run.rows, column, f"{run.name}: {name}", line), **place)
        figure.update_xaxes(title_text="step", **place)
        figure.update_yaxes(title_text=label, type=scale, exponentformat="power", **place)
    return _part(figure, 760)


def sharpness(runs: Sequence[Recorded], colors: Mapping[str, str]) -> str:
    """Draw the sharpness beside the threshold of the optimizer."""
    from plotly.graph_objects import Figure  # noqa: PLC0415

    figure = Figure()
    for run in runs:
        for column, (label, _, _) in STYLES.items():
            line = {"dash": _DASH_OF[column], "color": colors[run.name], "width": 1.6}
            figure.add_trace(_line(run.rows, column, f"{run.name}: {label}", line))
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="curvature", range=[0, max(top(run.rows) for run in runs)])
    return _part(figure, 440)


def sharpness_keys(columns: Collection[str]) -> list[tuple[str, str]]:
    """Return what was measured, and its dash."""
    return [(label, _DASH_OF[column]) for column, (label, _, _) in STYLES.items() if column in columns]


def landscape(surface: Landscape) -> str:
    """Draw a line with losses and accuracy, or the contours of a plane."""
    from plotly.subplots import make_subplots  # noqa: PLC0415

    if min(len(surface.xs), len(surface.ys)) > 1:
        shown = [str(name) for name in ("loss", "accuracy") if name in surface.values]
        figure = make_subplots(1, len(shown), horizontal_spacing=0.16)
        for number, name in enumerate(shown):
            right = (number + 1) / len(shown) - 0.08 * (len(shown) - 1 - number)
            _add_contours(figure, surface, name, right, number + 1)
        return _part(figure, 480)
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    along = surface.xs if len(surface.xs) > 1 else surface.ys
    for (name, values), color, dash in zip(surface.values.items(), COLORS, DASHES, strict=False):
        scaled = 100 * values if name == "accuracy" else values
        scatter = _scatter(along, scaled, NAMES.get(name, name), {"color": color, "dash": dash})
        figure.add_trace(scatter.update(showlegend=True), secondary_y=name == "accuracy")
    figure.update_xaxes(title_text="along the direction")
    scale = "log" if is_steep(surface.values["loss"]) else "linear"
    figure.update_yaxes(title_text="loss", type=scale, exponentformat="power", secondary_y=False)
    figure.update_yaxes(title_text="accuracy (%)", range=[0, 105], tickmode="auto", showgrid=False, secondary_y=True)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})
    return _part(figure, 440)


def _add_contours(figure: Any, surface: Landscape, name: str, right: float, column: int) -> None:
    from plotly.graph_objects import Contour  # noqa: PLC0415

    values = surface.values[name]
    title = NAMES[name]
    if name == "accuracy":
        values, title = 100 * values, f"{title} (%)"
    elif is_steep(values):
        values, title = np.log10(np.where(values > 0, values, np.nan)), f"log10 of the {title}"
    bar = {"title": {"text": title, "side": "right"}, "x": right, "xanchor": "left", "thickness": 14}
    scale = "Cividis" if name == "accuracy" else "Viridis"
    contours = Contour(x=plain(surface.xs), y=plain(surface.ys), z=plain(values.T), colorscale=scale, colorbar=bar)
    figure.add_trace(contours.update(name=title), row=1, col=column)
    figure.update_xaxes(title_text="x", row=1, col=column)
    figure.update_yaxes(title_text="y", row=1, col=column)


def _line(rows: Sequence[Row], column: str, name: str, line: Mapping[str, Any]) -> Any:
    points = [(row["step"], row[column]) for row in rows if column in row]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return _scatter(steps, values, name, line)


def _scatter(x: np.ndarray, y: np.ndarray, name: str, line: Mapping[str, Any]) -> Any:
    from plotly.graph_objects import Scatter  # noqa: PLC0415

    mode = "lines+markers" if len(x) == 1 else "lines"
    return Scatter(x=plain(x), y=plain(y.reshape(-1)), name=name, line=line, mode=mode, showlegend=False)


def plain(values: np.ndarray) -> Any:
    """Return lists with None for what is not finite."""
    return json.loads(json.dumps(finite(values).tolist()).replace("NaN", "null"))


def _part(figure: Any, height: int) -> str:
    figure.update_layout(template="plotly_white", height=height, margin={"l": 70, "r": 20, "t": 30, "b": 55})
    figure.update_xaxes(ticks="outside", tickcolor="#bbb")
    figure.update_yaxes(ticks="outside", tickcolor="#bbb", nticks=7)
    draw: Callable[..., str] = figure.to_html
    return draw(full_html=False, include_plotlyjs=False, default_width="100%", config={"displaylogo": False})
