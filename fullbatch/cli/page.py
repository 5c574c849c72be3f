"""A page of one run or several, to look at in a browser: ``python -m fullbatch.cli.page FOLDERS... [--output FILE]``.

Folders are those of runs (``outputs/<date>/<time>``), of sweeps, and of landscapes. The page shows results, curves,
sharpness, landscapes and what the configurations differ in, and needs no network.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fullbatch.results.page import page
from fullbatch.results.recorded import Recorded, files_of, names_of, read_landscape, read_rows
from fullbatch.runtime.files import format_error, write_atomically
from fullbatch.settings.parse import read_settings

MISTAKE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; return the exit status: 0, or 2 for a mistake."""
    options = _parser().parse_args(arguments)
    try:
        tables, landscapes = files_of(options.folders)
        runs = [_recorded(name, path) for name, path in zip(names_of(tables), tables, strict=True)]
        write_atomically(options.output, page(runs, [read_landscape(path) for path in landscapes]).encode())
    except (ValueError, OSError) as error:
        message = format_error(error) if isinstance(error, OSError) else str(error)
        Console(file=sys.stderr, soft_wrap=True, highlight=False).print(message, markup=False)
        return MISTAKE
    Console(soft_wrap=True, highlight=False).print(f"{options.output}", markup=False)
    return 0


def _recorded(name: str, table: Path) -> Recorded:
    config = table.with_name("config.yaml")
    return Recorded(name, table.parent, read_rows(table), read_settings(config) if config.exists() else {})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fullbatch.cli.page", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="of runs, sweeps and landscapes")
    parser.add_argument(
        "--output", type=Path, default=Path("page.html"), help="the file to write; page.html by default"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
