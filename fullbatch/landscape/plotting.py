"""Figures of surfaces with matplotlib (the ``plot`` extra)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fullbatch.landscape.surface import Surface
from fullbatch.runtime.figures import figure_file

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"  # distinguishable for color-blind readers (Okabe & Ito, 2008)
DARK = "#222222"
STEEP = 50.0
"""Ratio of the largest to the smallest loss above which an axis is logarithmic."""
LEVELS = 13
"""Number of contours."""
NAMES = {"loss": "training loss", "full_loss": "full objective", "accuracy": "training accuracy"}


def draw_surface(surface: Surface, path: Path, title: str) -> None:
    """Draw a line (loss and accuracy), or a plane (contours of loss and accuracy, and the loss as a surface)."""
    size = (16.0, 5.2) if surface.grid.is_plane else (8.0, 5.0)
    with figure_file(path, size, title) as figure:
        if surface.grid.is_plane:
            _draw_plane(figure, surface)
        else:
            draw_line(figure.subplots(), surface)


def draw_line(axes: Any, surface: Surface, *, label_accuracy: bool = True) -> Any:
    """Draw losses on the left axis and the accuracy on the right one; return the right axis."""
    coordinates, label, values = line_of(surface)
    marker = "o-" if len(coordinates) == 1 else "-"
    lines = [
        axes.plot(coordinates, finite(values[name]), style.replace("-", marker, 1), color=color, label=NAMES[name])[0]
        for name, color, style in (("loss", BLUE, "-"), ("full_loss", GREEN, "--"))
        if name in values
    ]
    axes.set(ylabel="loss", yscale="log" if is_steep(values["loss"]) else "linear")
    axes.set_xlabel(label, parse_math=False)
    axes.grid(alpha=0.3)
    right = axes.twinx()
    if "accuracy" in values:
        lines += right.plot(coordinates, 100 * values["accuracy"], marker, color=ORANGE, label=NAMES["accuracy"])
    right.set_ylim(0, 105)
    right.set_ylabel("accuracy (%)" if label_accuracy else "")
    for along, _ in _marks(surface):
        axes.axvline(along, color=DARK, linestyle=":", linewidth=1)
    axes.legend(handles=lines, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(lines))
    return right


def line_of(surface: Surface) -> tuple[list[float], str, Mapping[str, np.ndarray]]:
    """Return the coordinates along the line, their label, and the values by name."""
    along_y = surface.grid.y.num > 1
    axis = surface.grid.y if along_y else surface.grid.x
    label = surface.labels[min(int(along_y), len(surface.labels) - 1)]
    return axis.values(), label, {name: array.reshape(-1) for name, array in surface.quantities().items()}


def finite(values: np.ndarray) -> np.ndarray:
    """Return the values with NaN in place of infinity, so that these are not drawn."""
    return np.where(np.isfinite(values), values, np.nan)


def is_steep(values: np.ndarray) -> bool:
    """Return whether the values should be drawn on a logarithmic axis."""
    bounded = values[np.isfinite(values)]
    return bool(bounded.size and bounded.min() > 0 and bounded.max() > STEEP * bounded.min())


def _draw_plane(figure: Any, surface: Surface) -> None:
    panels = [("loss", "viridis"), ("accuracy", "cividis")]
    values = surface.quantities()
    for number, (name, colors) in enumerate(panels):
        if name in values:
            axes = figure.add_subplot(1, 3, number + 1)
            percent = name == "accuracy"
            array = 100 * values[name] if percent else values[name]
            _draw_contours(figure, axes, surface, array, colors, steep=not percent and is_steep(array))
            axes.set_title(f"{NAMES[name]} (%)" if percent else NAMES[name])
    _draw_relief(figure.add_subplot(1, 3, 3, projection="3d"), surface, values["loss"])


def _draw_contours(figure: Any, axes: Any, surface: Surface, values: np.ndarray, colors: str, *, steep: bool) -> None:
    from matplotlib.colors import LogNorm, Normalize  # noqa: PLC0415

    masked = np.ma.masked_invalid(values.T)
    xs, ys = surface.grid.x.values(), surface.grid.y.values()
    low, high = (float(masked.min()), float(masked.max())) if masked.count() else (0.0, 1.0)
    norm = (LogNorm if steep else Normalize)(low, high)
    if low < high:
        levels = np.geomspace(low, high, LEVELS) if steep else np.linspace(low, high, LEVELS)
        filled = axes.contourf(xs, ys, masked, levels=levels, cmap=colors, norm=norm)
        axes.contour(xs, ys, masked, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
    else:
        filled = axes.pcolormesh(xs, ys, masked, cmap=colors)
    figure.colorbar(filled, ax=axes, shrink=0.9, format="%.3g")
    style = "o-" if surface.connected else "o"
    marks = zip(*_marks(surface), strict=True)
    axes.plot(*marks, style, color="white", markeredgecolor=DARK, markersize=5, linewidth=1)
    labels = [*surface.labels, "y"][:2]
    axes.set_xlabel(f"x: {labels[0]}", parse_math=False)
    axes.set_ylabel(f"y: {labels[1]}", parse_math=False)
    axes.set_xlim(surface.grid.x.min, surface.grid.x.max)
    axes.set_ylim(surface.grid.y.min, surface.grid.y.max)


def _draw_relief(axes: Any, surface: Surface, loss: np.ndarray) -> None:
    steep = is_steep(loss)
    height = finite(np.log10(np.where(loss > 0, loss, np.nan)) if steep else loss)
    xs, ys = np.meshgrid(surface.grid.x.values(), surface.grid.y.values(), indexing="ij")
    low, high = (np.nanmin(height), np.nanmax(height)) if np.isfinite(height).any() else (0.0, 1.0)
    axes.plot_surface(xs, ys, height, cmap="viridis", vmin=low, vmax=high, rcount=101, ccount=101, linewidth=0)
    axes.set_title("log10 of the training loss" if steep else "training loss")
    axes.view_init(elev=35, azim=-60)
    axes.locator_params(nbins=5)
    axes.set(xlabel="x", ylabel="y")


def _marks(surface: Surface) -> Sequence[tuple[float, float]]:
    """Return the points to mark: the path, or the model itself without one."""
    return surface.path or ((0.0, 0.0),)
