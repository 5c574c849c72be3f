"""Experiments in the layout of the paper's tables, with notes: as text, Markdown or CSV."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence

from rich.table import Table

from fullbatch.results.experiments import Experiment, distinguishing_settings, format_mean
from fullbatch.results.published import SOURCE, PublishedResult, equal_cells, find_published
from fullbatch.runtime.plain_text import PlainConsole, count_of, csv_cell, markdown, printable

TITLES = ("experiment", "mini-batching", "steps", "modifications", "seeds", "validation %", "training %", "published %")
_DEFAULTS: Mapping[str, tuple[str, str]] = {
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
"""Setting -> default value, and text for another value in the column of modifications."""
WIDTH = 160
"""Width of tables that are not printed to a terminal, in characters."""
Cells = tuple[str, ...]


def sections(experiments: Sequence[Experiment]) -> dict[str, list[tuple[Experiment, Cells]]]:
    """Return 'data, model' -> experiments and their cells, in the order of ``TITLES``."""
    result: dict[str, list[tuple[Experiment, Cells]]] = {}
    for one, distinguishing in zip(experiments, distinguishing_settings(experiments), strict=True):
        result.setdefault(", ".join(one.title[1:]), []).append((one, _cells(one, distinguishing)))
    return result


def notes(experiments: Sequence[Experiment]) -> list[str]:
    """Return the notes below the tables."""
    lines = ["validation and training accuracy: of the last step, mean ± standard deviation over seeds (n - 1)"]
    for one in experiments:
        published = _published(one)
        if one.diverged:
            seeds = f"seed{'s' if len(one.diverged) > 1 else ''} {', '.join(one.diverged)}"
            lines.append(f"{one.name}: diverged and not in the mean: {seeds}")
        if one.num_repeated:
            different = f"; {one.num_different} of them had another accuracy" if one.num_different else ""
            repeat = "repeats" if one.num_repeated == 1 else "repeat"
            lines.append(
                f"{one.name}: {count_of(one.num_repeated, 'run')} {repeat} a seed; the last one counts{different}"
            )
        if published is not None and published.differences:
            lines.append(f"{one.name}: differs from the published experiment: {'; '.join(published.differences)}")
    if any(_published_cells(one) for one in experiments):
        lines.append(SOURCE)
    return list(dict.fromkeys(lines))


def as_text(experiments: Sequence[Experiment], more_notes: Sequence[str], encoding: str) -> str:
    """Return tables as wide as the terminal, in characters that the encoding has."""
    text, terminal = io.StringIO(), PlainConsole()
    console = PlainConsole(file=text, width=terminal.width if terminal.is_terminal else WIDTH, encoding=encoding)
    for title, rows in sections(experiments).items():
        table = Table(title=printable(title), title_justify="left")
        for number, column in enumerate(TITLES):
            table.add_column(column, justify="right" if number in (2, 4, 5, 6, 7) else "left")
        for _, cells in rows:
            table.add_row(*map(printable, cells))
        console.print(table)
    console.print("\n".join(map(printable, [*notes(experiments), *more_notes])), soft_wrap=True)
    return text.getvalue()


def as_markdown(experiments: Sequence[Experiment], more_notes: Sequence[str], _: str) -> str:
    """Return tables in Markdown."""
    lines = []
    for title, rows in sections(experiments).items():
        lines += [f"**{markdown(title)}**", ""]
        cells = [map(markdown, cells) for _, cells in rows]
        for row in (TITLES, ["---"] * 2 + ["---:", "---"] + ["---:"] * 4, *cells):
            lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    return "\n".join(lines + [f"- {markdown(note)}" for note in [*notes(experiments), *more_notes]]) + "\n"


def as_csv(experiments: Sequence[Experiment], _: Sequence[str], __: str) -> str:
    """Return one comma-separated table without notes: accuracies in percent, unrounded; empty cells for no value."""
    text = io.StringIO(newline="")
    columns = [*TITLES[:5], "diverged", "valid_mean", "valid_deviation", "train_mean", "train_deviation"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["data", "model", *columns, "published_mean_unverified", "published_deviation_unverified"])
    for rows in sections(experiments).values():
        for one, cells in rows:
            numbers: list[float | str] = []
            for column in ("valid_acc", "train_acc"):
                percent = [100 * value for value in one.values(column)]
                numbers.append(statistics.mean(percent) if percent else "")
                numbers.append(statistics.stdev(percent) if len(percent) > 1 else "")
            identity = [*one.title[1:], *cells[:4], len(one.runs), len(one.diverged)]
            writer.writerow(map(csv_cell, [*identity, *numbers, *(_published_cells(one) or ("", ""))]))
    return text.getvalue()


FORMATS = {"text": as_text, "markdown": as_markdown, "csv": as_csv}


def _cells(one: Experiment, distinguishing: Sequence[str]) -> Cells:
    settings, published = one.settings, _published_cells(one)
    modifications = [
        text.format(settings[key])
        for key, (default, text) in _DEFAULTS.items()
        if key in settings and not equal_cells(settings[key], default)
    ]
    modifications += [text for text in distinguishing if not text.startswith((*_DEFAULTS, "steps ", "stoch "))]
    diverged = f" + {len(one.diverged)} diverged" if one.diverged else ""
    return (
        one.name,
        "yes" if settings.get("stoch") == "True" else "no",
        settings.get("steps", ""),
        ", ".join(modifications),
        f"{len(one.runs)}{diverged}",
        format_mean(one.values("valid_acc"), 100) or "diverged",
        format_mean(one.values("train_acc"), 100),
        "" if published is None else f"{published[0]:.2f} ± {published[1]:.2f}",
    )


def _published(one: Experiment) -> PublishedResult | None:
    return find_published(one.name, one.data, one.settings)


def _published_cells(one: Experiment) -> tuple[float, float] | None:
    """Return the published mean and deviation if the settings are the same."""
    published = _published(one)
    return None if published is None or published.differences else (published.accuracy, published.deviation)
