"""The command ``fullbatch``, also ``python -m fullbatch``."""

import sys
from collections.abc import Sequence
from importlib import import_module

from fullbatch.runtime.console import console_streams, output_is_lost

COMMANDS = {
    "train": ("train a model, or a sweep of them (-m)", "fullbatch.app.hydra_cli:train"),
    "landscape": ("compute and draw the loss landscape around a checkpoint", "fullbatch.app.hydra_cli:landscape"),
    "verify": ("evaluate a checkpoint on its validation set again", "fullbatch.app.hydra_cli:verify"),
    "gradient-error": ("measure the error of the full gradient", "fullbatch.app.hydra_cli:gradient_error"),
    "report": ("print the results of runs, by experiment", "fullbatch.cli.report:main"),
    "status": ("print the progress of runs and sweeps", "fullbatch.cli.status:main"),
    "page": ("write an HTML page of runs and landscapes", "fullbatch.cli.page:main"),
    "inspect": ("show the content of a database or a data set", "fullbatch.cli.inspect:main"),
}
"""Name -> description and function, ``package.module:function``, which is imported when the command is chosen."""

LOGGING = ("train", "landscape", "gradient-error", "verify")
"""The commands that also write their results into files, or find out themselves that they cannot print them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command with the arguments after its name; return the exit status, 2 for an unknown command."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with console_streams():
        return _run(name, rest) or (2 if name not in LOGGING and output_is_lost() else 0)


def _run(name: str, arguments: Sequence[str]) -> int:
    if name in ("-h", "--help"):
        lines = [f"  {command:15} {description}" for command, (description, _) in COMMANDS.items()]
        sys.stdout.write("\n".join(["usage: python -m fullbatch COMMAND ...", "", *lines, ""]))
        return 0
    if name not in COMMANDS:
        sys.stderr.write(f"fullbatch {name}: there is no such command; known: {', '.join(COMMANDS)}\n")
        return 2
    module, _, function = COMMANDS[name][1].partition(":")
    sys.argv[0] = f"python -m fullbatch {name}"
    status: int = getattr(import_module(module), function)(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
