"""The frame of all commands: the parser of their arguments, and their exit status after a mistake."""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable

from fullbatch.app.exit_status import ExitStatus
from fullbatch.runtime.files import format_error
from fullbatch.runtime.plain_text import PlainConsole, printable


def command_parser(name: str, description: str | None) -> ArgumentParser:
    """Return a parser for the arguments of ``python -m fullbatch <name>``."""
    return ArgumentParser(f"python -m fullbatch {name}", None, description, formatter_class=RawDescriptionHelpFormatter)


def run_command(command: Callable[[Namespace], None], options: Namespace) -> int:
    """Run a command, print its ``ValueError`` or ``OSError`` as one line, and return its exit status."""
    try:
        command(options)
    except (ValueError, OSError) as error:
        PlainConsole(file=sys.stderr, soft_wrap=True).print(printable(format_error(error)))
        return ExitStatus.MISTAKE
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    return ExitStatus.DONE
