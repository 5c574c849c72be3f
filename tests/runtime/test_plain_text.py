"""Text of users and files: nothing in it is markup, a control sequence or a formula, whatever the medium."""

import csv
import io

import pytest
from rich.table import Table

from fullbatch.runtime.plain_text import PlainConsole, count_of, csv_cell, html_text, markdown, printable

HOSTILE = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "over\rwritten",
    "two\nlines",
    "\u202etxt.exe",
    "\u2066isolated",
    "a\u200bb\ufeff",
    "\x9b2J",
    "\udce9",
    "[bold]x[/bold]",
    "[/data/mirror]",
    "x[gn]",
    ":x: :warning:",
    "a|b",
    "`code`",
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "+1+cmd|x",
    "-2+3",
    "@SUM(A1)",
    "# title",
    "1. item",
    "{braces} 100%",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_is_obeyed(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert "\x1b" not in shown
    for medium in (markdown(text), html_text(text), str(csv_cell(text))):
        assert medium.isprintable()
    assert "<" not in markdown(text) + html_text(text)
    assert "|" not in markdown(text).replace("\\|", "")
    assert "`" not in markdown(text).replace("\\`", "")
    assert not str(csv_cell(text)).startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize(
    "text", ["é", "画像", "a\u200cb", "👩\u200d🔬", "x±1", "name_of_run", "lr 0.4, reg 0.5", "9 - 3"]
)
def test_ordinary_text_stays(text: str) -> None:
    assert printable(text) == markdown(text) == html_text(text) == csv_cell(text) == text


@pytest.mark.parametrize("value", ["-0.5", "+1e-3", "-inf", 3, -2.5, "", "12"])
def test_numbers_stay(value: object) -> None:
    assert csv_cell(value) == value
    assert not isinstance(value, str) or markdown(value) == value


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_console_shows_text_as_it_is(text: str, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = PlainConsole(file=stream, width=200, force_terminal=True, color_system=None)
    table = Table(title=f"{text} ± é", caption=text)
    table.add_column(text)
    table.add_row(printable(text))
    console.print(table)
    console.print(text)
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert shown.replace("\n", "").isprintable()
    assert shown.count(printable(text)) + shown.count("two") >= 2


def test_numbers_of_things() -> None:
    assert [count_of(number, "job") for number in (0, 1, 2, 2000)] == ["0 jobs", "1 job", "2 jobs", "2,000 jobs"]


def test_a_cell_is_read_back_as_one_cell() -> None:
    text = io.StringIO()
    csv.writer(text).writerow([csv_cell('=a,"b"\nc'), csv_cell(1.5)])
    assert list(csv.reader(io.StringIO(text.getvalue()))) == [['\'=a,"b"\\nc', "1.5"]]
