"""Print a table of the results of runs, with one row per experiment.

An experiment consists of all runs of one name and configuration. The table has the mean and standard deviation over
seeds of the accuracies after the last step (never of the best step), and published values for experiments of the same
name and settings. Runs are read from the tables/table_fb_<data>_runs.csv of the given folders, unfinished jobs from the
ledger beside them.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fullbatch.app.paths import LEDGER
from fullbatch.cli.command import command_parser, run_command
from fullbatch.results.experiments import find_tables, read_experiments
from fullbatch.results.job_status import OVER
from fullbatch.results.layout import FORMATS
from fullbatch.results.ledger import Ledger, by_job, decisive
from fullbatch.runtime.files import write_atomically
from fullbatch.runtime.plain_text import PlainConsole


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the report; return the exit status."""
    parser = command_parser("report", __doc__)
    parser.add_argument(
        "paths", type=Path, nargs="*", default=[Path()], help="tables, folders of tables, or launch folders"
    )
    parser.add_argument("--format", choices=sorted(FORMATS), default="text")
    parser.add_argument("--output", type=Path, help="file to write; default: standard output")
    return run_command(_report, parser.parse_args(arguments))


def _report(options: Namespace) -> None:
    tables = list(dict.fromkeys(table.resolve() for path in options.paths for table in find_tables(path)))
    console = PlainConsole()
    encoding = console.encoding if options.output is None else "utf-8"
    text = FORMATS[options.format](read_experiments(tables), _notes_on_unfinished(tables), encoding)
    if options.output is None:
        console.file.write(text)
    else:
        write_atomically(options.output, text.encode())


def _notes_on_unfinished(tables: Sequence[Path]) -> list[str]:
    """Return a note for each name with unfinished jobs in the ledgers beside the tables."""
    counts: dict[str, Counter[str]] = {}
    for path in dict.fromkeys(table.with_name(LEDGER) for table in tables):
        if not path.exists():
            continue
        for attempts in by_job(Ledger(path).attempts()).values():
            attempt = decisive(attempts)
            if attempt.state not in OVER:
                counts.setdefault(f"{attempt.name} on {attempt.data}", Counter())[attempt.state.value] += 1
    return [
        f"{name}: not in the table: {', '.join(f'{number} {state}' for state, number in states.items())}"
        for name, states in counts.items()
    ]
