"""Text of users and files, made safe for where it is shown: terminals, tables, Markdown and HTML.

Names, overrides and messages may contain anything. Nothing in them is markup, moves the cursor, hides other text or
runs as a formula: what would be obeyed rather than shown is replaced by an escape such as ``\\x1b``.
"""

import html
import re
import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

_JOINERS = "\u200c\u200d"  # part of words and emoji
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: object, *, keep: str = "") -> str:
    """Return the text with escapes for control characters, line breaks, invisible and bidirectional formatting.

    Characters in ``keep`` stay.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _HIDDEN and character not in _JOINERS + keep
        else character
        for character in str(text)
    )


def csv_cell(value: object) -> object:
    """Return a cell of a CSV file for a spreadsheet, where text that begins like a formula is one.

    Such text gets a leading apostrophe. Numbers, also those given as text, stay.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not _is_number(text) else text


def markdown(text: str) -> str:
    """Return text for one line of Markdown, where nothing in it is markup, HTML, an emoji code or a table cell."""
    text = html.escape(printable(text), quote=False)
    text = re.sub(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|:(?=[\w+-]+:)", r"\\\g<0>", text)
    return re.sub(r"^(\s*\d*)([#+=.)-])", r"\1\\\2", text) if not _is_number(text) else text


def html_text(text: object) -> str:
    """Return text for HTML, in elements and in quoted attributes."""
    return html.escape(printable(text))


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun: '1 job', '2,000 jobs'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class PlainConsole(Console):
    """A console on which text is shown as it is, without markup, emoji codes and highlighting.

    Control characters except for line breaks and tabs are shown as escapes, and so are characters that the encoding
    of the stream lacks.

    Args:
        encoding: of the text, if it is not that of the stream.
    """

    def __init__(self, *, encoding: str | None = None, **options: Any) -> None:
        self._text_encoding = encoding
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})
        if (reconfigure := getattr(self.file, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")

    @property
    def encoding(self) -> str:
        """The encoding of the text; frames of tables are ASCII unless it is a Unicode encoding."""
        return self._text_encoding or super().encoding

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text to show for a string."""
        text = printable(text, keep="\n\t")
        if not self.encoding.startswith("utf"):
            text = text.replace("±", "+/-").encode(self.encoding, "backslashreplace").decode(self.encoding)
        return super().render_str(text, **options)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
