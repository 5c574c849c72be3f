"""Compare runs in a table and a plot, from their convergence tables.

    python benchmarks/compare_runs.py [TABLE.csv ...] [--image runs.png]

Tables are the ones in run folders, by default all in ``outputs/``. Runs named ``NAME_1``, ``NAME_2``, ... are one
experiment with several seeds. Mean and standard deviation are over the seeds, of the last step and never of the best
one.
"""

import argparse
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from fullbatch.results.experiments import format_mean
from fullbatch.training.tables import read_table

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")  # Okabe & Ito, 2008
Run = list[dict[str, float]]


def read(path: Path) -> Run:
    return [{key: float(value) for key, value in row.items() if value} for row in read_table(path)]


def experiments(paths: Sequence[Path]) -> dict[str, list[Run]]:
    """Return runs by the name of their experiment; of several tables with one name, the longest is used."""
    longest: dict[str, Run] = {}
    for path in paths:
        name = re.sub(r"^table_|_convergence_results$", "", path.stem)
        longest[name] = max(longest.get(name, []), read(path), key=len)
    grouped: dict[str, list[Run]] = {}
    for name, run in longest.items():
        grouped.setdefault(re.sub(r"_\d$", "", name), []).append(run)
    return grouped


def table_of(runs: dict[str, list[Run]]) -> Table:
    table = Table("run", "seeds", "steps", "full passes", "validation %", "training %", "minutes")
    for name, seeds in runs.items():
        validated = [[row for row in run if "valid_acc" in row][-1] for run in seeds]
        table.add_row(
            name,
            str(len(seeds)),
            "/".join(sorted({str(len(run)) for run in seeds})),
            f"{statistics.mean(sum(row['evaluations'] for row in run) for run in seeds):.0f}",
            format_mean([row["valid_acc"] for row in validated], 100),
            format_mean([run[-1]["train_acc"] for run in seeds], 100),
            f"{statistics.mean(sum(row['train_time'] for row in run) for run in seeds) / 60:.0f}",
        )
    return table


def draw(runs: dict[str, list[Run]], path: Path) -> None:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = (("train_loss", "training loss"), ("valid_acc", "validation accuracy"))
    for axes, (column, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for (name, seeds), color in zip(runs.items(), COLORS, strict=False):
            for number, run in enumerate(seeds):
                points = [(row["step"], row[column]) for row in run if column in row]
                label_once = name if number == 0 else None
                axes.plot(*zip(*points, strict=True), color=color, label=label_once, linewidth=1.4, alpha=0.9)
        axes.set(xlabel="step (an epoch, where stochastic)", ylabel=label)
        axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="*")
    parser.add_argument("--image", type=Path)
    options = parser.parse_args()
    paths = options.tables or sorted(Path("outputs").rglob("table_*_convergence_results.csv"))
    if not paths:
        parser.error("no tables: name some, or run this in the folder that contains outputs/")
    runs = experiments(paths)
    Console().print(table_of(runs))
    if options.image:
        draw(runs, options.image)


if __name__ == "__main__":
    main()
