"""Experiments laid out as the tables of the paper: rows and notes, as text, Markdown or CSV."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from fullbatch.results.experiments import Experiment, spread, telling
from fullbatch.results.published import SOURCE, published, same

TITLES = ("experiment", "mini-batching", "steps", "modifications", "seeds", "validation %", "training %", "published %")
_USUAL: Mapping[str, tuple[str, str]] = {
    "optimizer": ("gd", "{}"),
    "optim_modification.name": ("none", "{}"),
    "batch_size": ("128", "blocks of {}"),
    "shuffle": ("False", "shuffled"),
    "augmentations": ("True", "no augmentation"),
    "grad_clip": ("", "clip {}"),
    "batch_clip": ("", "batch clip {}"),
    "grad_reg.block_strength": ("0", "reg {}"),
    "grad_reg.acc_strength": ("0", "reg of the mean {}"),
    "loss_modification": ("", "{}"),
    "label_smoothing": ("0", "smoothing {}"),
    "label_noise": ("0", "label noise {}"),
    "train_semi_stochastic": ("False", "semi-stochastic"),
    "train_switch_stochastic": ("", "other mode after {} steps"),
}
"""Settings that are told where they are not as usual."""
WIDTH = 160
"""Of tables that do not go to a terminal, in characters."""
Cells = tuple[str, ...]


def sections(found: Sequence[Experiment]) -> dict[str, list[tuple[Experiment, Cells]]]:
    """Return 'data, model' -> experiments and their rows, in the order of ``TITLES``."""
    told = telling(found)
    laid_out: dict[str, list[tuple[Experiment, Cells]]] = {}
    for number, one in enumerate(found):
        title = f"{one.data}, {one.settings.get('model', '')}"
        laid_out.setdefault(title, []).append((one, _cells(one, told[number])))
    return laid_out


def notes(found: Sequence[Experiment]) -> list[str]:
    """Return what must be said below the tables."""
    lines = ["validation and training accuracy: of the last step, mean ± standard deviation over seeds (n - 1)"]
    for one in found:
        beside = published(one.name, one.data, one.settings)
        if one.diverged:
            lines.append(f"{one.name}: diverged and not in the mean: seeds {', '.join(one.diverged)}")
        if one.repeated:
            others = f"; {one.differing} of them had another accuracy" if one.differing else ""
            lines.append(f"{one.name}: {one.repeated} runs of a seed that had run before; the last counts{others}")
        if beside is not None and beside.differences:
            lines.append(f"{one.name}: not beside the published value: {'; '.join(beside.differences)}")
    if any(_published(one) for one in found):
        lines.append(SOURCE)
    return list(dict.fromkeys(lines))


def as_text(found: Sequence[Experiment], more: Sequence[str]) -> str:
    """Return tables for the terminal, as wide as that."""
    text, terminal = io.StringIO(), Console()
    console = Console(file=text, width=terminal.width if terminal.is_terminal else WIDTH, highlight=False)
    for title, rows in sections(found).items():
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(TITLES):
            table.add_column(column, justify="right" if number in (2, 4, 5, 6, 7) else "left")
        for _, cells in rows:
            table.add_row(*cells)
        console.print(table)
    console.print("\n".join([*notes(found), *more]), markup=False, soft_wrap=True)
    return text.getvalue()


def as_markdown(found: Sequence[Experiment], more: Sequence[str]) -> str:
    """Return tables for a page."""
    lines = []
    for title, rows in sections(found).items():
        lines += [f"**{title}**", ""]
        lines += [_line(TITLES), _line(["---"] * 2 + ["---:", "---"] + ["---:"] * 4)]
        lines += [_line(cells) for _, cells in rows]
        lines.append("")
    return "\n".join(lines + [f"- {note}" for note in [*notes(found), *more]]) + "\n"


def as_csv(found: Sequence[Experiment], _: Sequence[str]) -> str:
    """Return one table for programs: comma-separated, numbers in full, accuracies in percent; a blank where none."""
    text = io.StringIO(newline="")
    columns = [*TITLES[:5], "diverged", "valid_mean", "valid_deviation", "train_mean", "train_deviation"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["data", "model", *columns, "published_mean_unverified", "published_deviation_unverified"])
    for rows in sections(found).values():
        for one, cells in rows:
            numbers = [number for key in ("valid_acc", "train_acc") for number in _moments(one.values(key))]
            start = [one.data, one.settings.get("model", ""), *cells[:4], len(one.runs), len(one.diverged)]
            writer.writerow([*start, *numbers, *(_published(one) or ("", ""))])
    return text.getvalue()


FORMATS = {"text": as_text, "markdown": as_markdown, "csv": as_csv}


def _cells(one: Experiment, told: Sequence[str]) -> Cells:
    settings, beside = one.settings, _published(one)
    changes = [
        form.format(settings[key])
        for key, (usual, form) in _USUAL.items()
        if key in settings and not same(settings[key], usual)
    ]
    apart = [text for text in told if not text.startswith((*_USUAL, "steps ", "stoch "))]
    diverged = f" + {len(one.diverged)} diverged" if one.diverged else ""
    return (
        one.name,
        "yes" if settings.get("stoch") == "True" else "no",
        settings.get("steps", ""),
        ", ".join([*changes, *apart]),
        f"{len(one.runs)}{diverged}",
        spread(one.values("valid_acc"), 100) or "diverged",
        spread(one.values("train_acc"), 100),
        "" if beside is None else f"{beside[0]:.2f} ± {beside[1]:.2f}",
    )


def _published(one: Experiment) -> tuple[float, float] | None:
    found = published(one.name, one.data, one.settings)
    return None if found is None or found.differences else (found.accuracy, found.deviation)


def _moments(values: Sequence[float]) -> tuple[float | str, float | str]:
    percent = [100 * value for value in values]
    mean = statistics.mean(percent) if percent else ""
    return mean, statistics.stdev(percent) if len(percent) > 1 else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
