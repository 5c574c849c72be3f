"""A figure of the curves of a run."""

import logging
from collections.abc import Sequence
from pathlib import Path

from fullbatch.runtime.figures import figure_file, import_matplotlib
from fullbatch.training.state import Row

log = logging.getLogger(__name__)

PANELS = (
    ("loss", {"train_loss": "training", "full_loss": "full objective", "valid_loss": "validation"}, "log"),
    ("accuracy", {"train_acc": "training", "valid_acc": "validation"}, "linear"),
    ("gradient norm", {"grad_norm": "of blocks (r.m.s.)", "full_grad_norm": "of all data, regularized"}, "log"),
    ("learning rate", {"lr": "learning rate"}, "linear"),
)
COLORS = ("#0072B2", "#E69F00", "#009E73")  # distinguishable for color-blind readers, too (Okabe & Ito, 2008)


def draw_curves(rows: Sequence[Row], path: str | Path, title: str) -> None:
    """Draw loss, accuracy, gradient norms and learning rate against the step, and write a PNG, PDF or SVG file.

    Without matplotlib (the ``plot`` extra) a log message replaces the figure.
    """
    try:
        import_matplotlib()
    except ImportError:
        log.info("curves are not drawn: matplotlib is not installed (pip install 'fullbatch[plot]')")
        return
    with figure_file(path, (11, 7), title) as figure:
        for axes, (label, series, scale) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            for (column, name), color in zip(series.items(), COLORS, strict=False):
                points = [(row["step"], row[column]) for row in rows if column in row]
                if points:
                    sparse = "o-" if len(points) < len(rows) or len(points) == 1 else "-"
                    axes.plot(*zip(*points, strict=True), sparse, color=color, label=name, markersize=3, linewidth=1.4)
            axes.set(xlabel="step", ylabel=label, yscale=scale)
            axes.grid(alpha=0.3)
            if len(series) > 1:
                axes.legend(frameon=False)
