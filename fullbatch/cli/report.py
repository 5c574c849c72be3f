"""What runs came to: ``python -m fullbatch.cli.report [TABLES or FOLDERS...]``.

A row an experiment, which is all the runs of one name and configuration: mean and standard deviation over their seeds
of the accuracies after the last step, never of the best one; published values beside experiments of the same name and
settings. Runs come from ``tables/table_fb_<data>_runs.csv``, below the folders given; jobs that are not finished, from
the ledger beside it.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fullbatch.app.paths import LEDGER
from fullbatch.results.experiments import experiments, tables_at
from fullbatch.results.job_status import OVER
from fullbatch.results.layout import FORMATS
from fullbatch.results.ledger import Ledger, by_job, decisive
from fullbatch.runtime.files import format_error, write_atomically

MISTAKE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the report; return the exit status: 0, or 2 for a mistake."""
    options = _parser().parse_args(arguments)
    try:
        tables = list(dict.fromkeys(table.resolve() for place in options.places for table in tables_at(place)))
        text = FORMATS[options.format](experiments(tables), _unfinished(tables))
        if options.output is not None:
            write_atomically(options.output, text.encode())
    except (ValueError, OSError) as error:
        message = format_error(error) if isinstance(error, OSError) else str(error)
        Console(file=sys.stderr, soft_wrap=True, highlight=False).print(message, markup=False)
        return MISTAKE
    if options.output is None:
        sys.stdout.write(text)
    return 0


def _unfinished(tables: Sequence[Path]) -> list[str]:
    """Return a note for each name of which the ledgers beside the tables know jobs that are not over."""
    counts: dict[str, Counter[str]] = {}
    for path in dict.fromkeys(table.with_name(LEDGER) for table in tables):
        if not path.exists():
            continue
        for attempts in by_job(Ledger(path).attempts()).values():
            last = decisive(attempts)
            if last.state not in OVER:
                counts.setdefault(f"{last.name} on {last.data}", Counter())[last.state.value] += 1
    return [
        f"{name}: not in the table: {', '.join(f'{number} {state}' for state, number in states.items())}"
        for name, states in counts.items()
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fullbatch.cli.report", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "places", type=Path, nargs="*", default=[Path()], help="tables, folders of tables, launch folders"
    )
    parser.add_argument("--format", choices=sorted(FORMATS), default="text")
    parser.add_argument("--output", type=Path, help="the file to write; the terminal by default")
    return parser


if __name__ == "__main__":
    sys.exit(main())
