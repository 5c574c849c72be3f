"""Draw lines through loss landscapes side by side, on shared axes, from the tables of ``crunch_loss_landscape.py``.

    python benchmarks/compare_landscapes.py NAME... [--image landscapes.png]

NAMEs are names of databases (``viz.database_name``, by default the checkpoint's). For each, the newest table in
``outputs/`` is used.
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from fullbatch.landscape.grid import POINT, Axis, Grid
from fullbatch.landscape.plotting import draw_line, is_steep
from fullbatch.landscape.surface import Surface

FLAT = 0.1
"""The width in the table is that of the interval where the loss is at most this much above its lowest value."""


def read(name: str) -> Surface:
    paths = sorted(Path("outputs").rglob(f"landscape_{name}.csv"), key=lambda path: path.stat().st_mtime_ns)
    if not paths:
        raise SystemExit(f"{name}: no landscape_{name}.csv in outputs/; run crunch_loss_landscape.py first")
    with paths[-1].open(newline="", encoding="utf-8") as file:
        rows = [
            {key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(file, delimiter="\t")
        ]
    xs = [row["x"] for row in rows]
    if len(xs) < 2 or any(row["y"] != 0 for row in rows):
        raise SystemExit(f"{paths[-1]}: not a line along x")
    arrays = {name: np.array([[row.get(name, np.nan)] for row in rows]) for name in ("loss", "accuracy", "full_loss")}
    return Surface(Grid(Axis(xs[0], xs[-1], len(xs)), POINT), **arrays, labels=("x",))


def width(surface: Surface) -> float:
    """Return the length of the interval around the lowest loss in which the loss is less than ``FLAT`` higher."""
    loss, xs = surface.loss.reshape(-1), surface.grid.x.values()
    low = int(np.nanargmin(loss))
    inside = loss < loss[low] + FLAT
    left = next((n + 1 for n in range(low, -1, -1) if not inside[n]), 0)
    right = next((n - 1 for n in range(low, len(xs)) if not inside[n]), len(xs) - 1)
    return xs[right] - xs[left]


def draw(surfaces: dict[str, Surface], path: Path) -> None:
    figure = Figure(figsize=(4.6 * len(surfaces), 4.2), layout="constrained")
    panels = figure.subplots(1, len(surfaces), sharex=True, sharey=True, squeeze=False)[0]
    scale = "log" if any(is_steep(surface.loss) for surface in surfaces.values()) else "linear"
    for number, (axes, (name, surface)) in enumerate(zip(panels, surfaces.items(), strict=True)):
        last = number == len(surfaces) - 1
        plain = replace(surface, full_loss=np.full_like(surface.loss, np.nan))  # its terms differ between runs
        right = draw_line(axes, plain, label_accuracy=last)
        handles = axes.get_legend().legend_handles
        axes.get_legend().remove()
        right.tick_params(labelright=last)
        axes.set(title=name, yscale=scale, xlabel="along a random direction", ylabel="loss" if number == 0 else "")
    labels = [handle.get_label() for handle in handles]
    figure.legend(handles=handles, labels=labels, frameon=False, loc="outside lower center", ncols=len(handles))
    figure.savefig(path, dpi=130)


def table_of(surfaces: dict[str, Surface]) -> Table:
    table = Table("", "loss at 0", "accuracy at 0", "full objective at 0", f"width of loss < lowest + {FLAT:g}")
    for name, surface in surfaces.items():
        center = surface.grid.x.values().index(0.0)
        loss, accuracy, full = (
            float(array[center, 0]) for array in (surface.loss, surface.accuracy, surface.full_loss)
        )
        table.add_row(name, f"{loss:.4f}", f"{accuracy:.1%}", f"{full:.4f}", f"{width(surface):.2f}")
    return table


def compare(names: Sequence[str], image: Path) -> None:
    surfaces = {name: read(name) for name in names}
    Console().print(table_of(surfaces))
    draw(surfaces, image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--image", type=Path, default=Path("landscapes.png"))
    options = parser.parse_args()
    compare(options.names, options.image)


if __name__ == "__main__":
    main()
