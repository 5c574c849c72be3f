"""Write an HTML page of runs and landscapes.

The folders are those of runs (``outputs/<date>/<time>``), of sweeps, and of landscapes. The page shows results, curves,
sharpness, landscapes and the differences of the configurations, and needs no network.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from fullbatch.cli.command import command_parser, run_command
from fullbatch.results.page import render_page
from fullbatch.results.recorded import RecordedRun, find_run_tables, read_landscape, read_rows, run_names
from fullbatch.runtime.files import write_atomically
from fullbatch.runtime.plain_text import PlainConsole
from fullbatch.settings.parse import read_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; return the exit status."""
    parser = command_parser("page", __doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of runs, sweeps and landscapes")
    parser.add_argument("--output", type=Path, default=Path("page.html"), help="file to write; default: page.html")
    return run_command(_write_page, parser.parse_args(arguments))


def _write_page(options: Namespace) -> None:
    tables, landscapes = find_run_tables(options.folders)
    runs = []
    for name, table in zip(run_names(tables), tables, strict=True):
        config = table.with_name("config.yaml")
        settings = read_settings(config) if config.exists() else {}
        runs.append(RecordedRun(name, table.parent, read_rows(table), settings))
    page = render_page(runs, [read_landscape(path) for path in landscapes])
    write_atomically(options.output, page.encode())
    PlainConsole(soft_wrap=True).print(f"{options.output}")
