"""The command line of a run, before and after Hydra sees it."""

import json
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

COMMAND = "FULLBATCH_COMMAND"
"""The environment variable that holds the command line of a sweep, for the processes of its launcher."""
REPLACED = tuple(f"{group}.augmentations_{split}" for group in ("data", "data.db") for split in ("train", "val"))
"""Tables that a value on the command line replaces as a whole."""
SWEEP = ("-m", "--multirun")
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""The environment variables that torchrun sets."""


def is_torchrun_worker() -> bool:
    """Return whether torchrun has started this process, and not as the first one, which reports mistakes."""
    rank = os.environ.get("RANK", "0")
    return all(name in os.environ for name in TORCHRUN) and rank.isdecimal() and int(rank) > 0


def command_line() -> list[str]:
    """Return the command line of this run; in a process of a launcher, that of the sweep."""
    command = os.environ.get(COMMAND)
    return list(json.loads(command)) if command else sys.argv


def jobs_of(arguments: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a ``normalized`` command line, in Hydra's order; one job without ``-m``.

    The list is empty where a sweeper other than Hydra's own chooses the jobs.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if any(override.startswith("hydra/sweeper=") for override in overrides):
        return []
    parsed = OverridesParser.create().parse_overrides([text for text in overrides if not text.startswith("hydra")])
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [override.input_line or ""]
        for override in parsed
    ]
    return [list(job) for job in product(*choices)]


def normalized(arguments: Sequence[str], config_folder: Path) -> list[str]:
    """Return the command line in Hydra's grammar.

    - ``data=cifar10``: choices are spelled like their files below ``config_folder``.
    - ``key=~/folder``: the tilde, which Hydra refuses, is expanded.
    - ``data.augmentations_train={...}``: the whole table is replaced; Hydra would merge it and refuse new names.
    - ``-m`` may stand anywhere.

    Raises ``OverrideParseException`` for a value without a key, which fails an assertion in Hydra.
    """
    arguments = sorted(arguments, key=lambda argument: argument not in SWEEP)
    return [override for argument in arguments for override in _normalize(argument, config_folder)]


def _normalize(argument: str, config_folder: Path) -> list[str]:
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return [argument]
    if not key.strip(" +~"):
        raise OverrideParseException(argument, f"Error parsing override '{argument}': there is no key before '='")
    if key in REPLACED and value.startswith("{"):
        return [f"{key}=", f"++{argument}"]
    folder = config_folder / key.lstrip("+~")
    if folder.is_dir():
        spellings = {file.stem.lower(): file.stem for file in folder.glob("*.yaml")}
        value = ",".join(spellings.get(choice.strip().lower(), choice) for choice in value.split(","))
    elif value.startswith("~/"):
        value = str(Path(value).expanduser())
    return [f"{key}={value}"]
