"""A figure of the edge of stability: sharpness beside the threshold, and the training loss."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fullbatch.runtime.figures import figure_file, import_matplotlib
from fullbatch.runtime.plain_text import printable
from fullbatch.training.state import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

# Okabe & Ito's colors, distinguishable for color-blind readers
BLUE, ORANGE, GREEN, GRAY, BLACK = "#0072B2", "#D55E00", "#009E73", "#999999", "#000000"
STYLES = {
    "sharpness": ("sharpness", BLUE, "-"),
    "preconditioned_sharpness": ("preconditioned sharpness", ORANGE, "-"),
    "batch_sharpness": ("batch sharpness", GREEN, "-"),
    "stability_threshold": ("threshold of the optimizer", BLACK, "--"),
}


def draw_edge_of_stability(runs: Mapping[str, Sequence[Row]], path: str | Path, title: str = "") -> bool:
    """Draw sharpness, threshold and training loss of each run against the step, one column per run.

    The suffix of the path is .png, .pdf or .svg. Omits runs without a measured sharpness. Returns whether the figure
    was written: it needs a sharpness and matplotlib (the ``plot`` extra).
    """
    measured = {name: rows for name, rows in runs.items() if any("sharpness" in row for row in rows)}
    if not measured:
        return False
    try:
        import_matplotlib()
    except ImportError:
        log.info("no figure of the sharpness: matplotlib is not installed (pip install 'fullbatch[plot]')")
        return False
    with figure_file(path, (1.5 + 4.5 * len(measured), 6), title) as figure:
        _draw_runs(figure, measured)
    return True


def _draw_runs(figure: "Figure", measured: Mapping[str, Sequence[Row]]) -> None:
    grid = figure.subplots(2, len(measured), sharex="col", sharey="row", squeeze=False)
    for column, (name, rows) in enumerate(measured.items()):
        _draw_curvature(grid[0, column], rows)
        grid[1, column].plot(*_points(rows, "train_loss"), color=BLUE, linewidth=1.0)
        grid[1, column].set(xlabel="step", yscale="log")
        grid[1, column].grid(alpha=0.3)
        grid[0, column].set_title(printable(name), parse_math=False)
    for row, label in enumerate(("curvature", "training loss")):
        grid[row, 0].set_ylabel(label)
    grid[0, 0].set_ylim(0, max(top(rows) for rows in measured.values()))  # the same axis for all runs
    for set_formatter in (grid[1, 0].yaxis.set_major_formatter, grid[1, 0].yaxis.set_minor_formatter):
        set_formatter("{x:.2g}")
    grid[0, 0].legend(frameon=False)


def _draw_curvature(axes: "Axes", rows: Sequence[Row]) -> None:
    others = sorted(
        {column for row in rows for column in row if column.startswith("sharpness_") and column[10:].isdigit()}
    )
    for column in others:
        axes.plot(*_points(rows, column), color=GRAY, linewidth=0.8)
    for column, (label, color, line) in STYLES.items():
        steps, values = _points(rows, column)
        if steps:
            marker = "o" if len(steps) == 1 and line == "-" else ""
            axes.plot(steps, values, color=color, linestyle=line, linewidth=1.4, label=label, marker=marker)
    axes.grid(alpha=0.3)


def _points(rows: Sequence[Row], column: str) -> tuple[list[float], list[float]]:
    measured = [row for row in rows if column in row]
    return [row["step"] for row in measured], [row[column] for row in measured]


def top(rows: Sequence[Row]) -> float:
    """Return the upper end of the axis, which ignores the infinite thresholds at the start of a warm-up."""
    curves = [row[name] for row in rows for name in STYLES if name in row and name != "stability_threshold"]
    thresholds = [row["stability_threshold"] for row in rows if "stability_threshold" in row]
    last, lowest = thresholds[-1:], min(filter(math.isfinite, thresholds), default=0.0)
    return 1.25 * max([*curves, lowest] + [value for value in last if value < 3 * max(curves)]) or 1.0
