"""An HTML page with results, curves and configurations of runs; it needs no network."""

from collections.abc import Iterable, Mapping, Sequence

from fullbatch.results.interactive import (
    COLORS,
    CURVES_LEGEND,
    DASHES,
    colors_of,
    draw_curves,
    draw_landscape,
    draw_sharpness,
    sharpness_legend,
)
from fullbatch.results.recorded import LandscapeTable, RecordedRun, differing_keys
from fullbatch.runtime.plain_text import html_text

RESULTS: Mapping[str, tuple[str, str]] = {
    "valid_acc": ("validation accuracy", "{:.2%}"),
    "train_acc": ("training accuracy", "{:.2%}"),
    "valid_loss": ("validation loss", "{:.4g}"),
    "train_loss": ("training loss", "{:.4g}"),
    "full_loss": ("full objective", "{:.4g}"),
    "full_grad_norm": ("gradient norm", "{:.4g}"),
    "sharpness": ("sharpness", "{:.4g}"),
}
"""Column -> title and format of its last value."""
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2em auto; padding: 0 1.5em; }
table { border-collapse: collapse; margin: 0.6em 0 1.4em; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25em 0.8em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
.wide { overflow-x: auto; }
.key { display: inline-block; margin-right: 1.6em; }
.key svg { margin-right: 0.5em; }
"""
_PATTERNS = {"solid": "", "dash": "8 5", "dot": "2 4", "dashdot": "8 4 2 4"}


def render_page(runs: Sequence[RecordedRun], landscapes: Sequence[LandscapeTable]) -> str:
    """Return an HTML document with the results, curves, sharpness, landscapes and configurations that are available.

    It includes the drawing library, plotly (the ``html`` extra).

    Raises:
        ValueError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415
    except ImportError:
        raise ValueError("a page needs plotly, which is not installed (pip install 'fullbatch[html]')") from None
    title = html_text(", ".join(dict.fromkeys([*(run.name for run in runs), *(one.name for one in landscapes)])))
    parts = [*_runs(runs), *(_section(f"Loss landscape: {one.name}", draw_landscape(one)) for one in landscapes)]
    parts += _configurations([run for run in runs if run.settings])
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script>'
    body = "\n".join([f"<h1>{title}</h1>", *parts])
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _runs(runs: Sequence[RecordedRun]) -> list[str]:
    if not runs:
        return []
    colors = colors_of(runs)
    several = len(runs) > 1
    names = "".join(_legend_entry(*entry, "solid") for entry in colors.items()) + "<br>" if several else ""
    series = zip(CURVES_LEGEND, ["#444"] * len(CURVES_LEGEND) if several else COLORS, DASHES, strict=False)
    legend = names + "".join(_legend_entry(*entry) for entry in series)
    parts = [_section("Results after the last step", _results(runs)), _section("Curves", legend + draw_curves(runs))]
    sharp = [run for run in runs if any("sharpness" in row for row in run.rows)]
    if sharp:
        measured = {column for run in sharp for row in run.rows for column in row}
        color = "#444" if several else COLORS[0]
        legend = names + "".join(_legend_entry(label, color, dash) for label, dash in sharpness_legend(measured))
        parts.append(_section("Sharpness", legend + draw_sharpness(sharp, colors)))
    return parts


def _results(runs: Sequence[RecordedRun]) -> str:
    shown = [column for column in RESULTS if any(column in row for run in runs for row in run.rows)]
    titles = ["run", "steps", *(RESULTS[column][0] for column in shown), "gradient evaluations", "time (s)", "folder"]
    rows = []
    for run in runs:
        last = {column: value for row in run.rows for column, value in row.items()}
        cells = [RESULTS[column][1].format(last[column]) if column in last else "" for column in shown]
        sums = [sum(row.get(column, 0.0) for row in run.rows) for column in ("evaluations", "train_time")]
        rows.append([run.name, f"{last['step']:.0f}", *cells, f"{sums[0]:,.0f}", f"{sums[1]:,.1f}", str(run.folder)])
    return _table(titles, rows)


def _configurations(runs: Sequence[RecordedRun]) -> list[str]:
    parts = []
    if len(runs) > 1:
        rows = [[key, *(run.settings.get(key, "") for run in runs)] for key in differing_keys(runs)]
        table = _table(["key", *(run.name for run in runs)], rows) if rows else "<p>None.</p>"
        parts.append(_section("Differences of the configurations", table))
    for run in runs:
        table = _table(["key", "value"], run.settings.items())
        parts.append(f"<details><summary>Configuration of {html_text(run.name)}</summary>{table}</details>")
    return parts


def _section(title: str, content: str) -> str:
    return f"<h2>{html_text(title)}</h2>\n{content}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html_text(title)}</th>" for title in titles)
    body = "\n".join("<tr>" + "".join(f"<td>{html_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _legend_entry(label: str, color: str, dash: str) -> str:
    line = (
        f'<line x1="0" y1="5" x2="34" y2="5" stroke="{color}" stroke-width="2.5" stroke-dasharray="{_PATTERNS[dash]}"/>'
    )
    return f'<span class="key"><svg width="34" height="10">{line}</svg>{html_text(label)}</span>'
