"""Command lines before Hydra sees them: the names of group choices are case-insensitive."""

from collections.abc import Sequence
from pathlib import Path


def match_case(arguments: Sequence[str], config_folder: Path) -> list[str]:
    """Spell group choices as their files are: ``data=cifar10`` becomes ``data=CIFAR10``.

    Only overrides ``group=choice[,choice...]`` of groups below ``config_folder`` change, and only where a file of that
    name exists in some spelling.
    """
    return [_match_one(argument, config_folder) for argument in arguments]


def _match_one(argument: str, config_folder: Path) -> str:
    group, equals, choices = argument.partition("=")
    folder = config_folder / group.lstrip("+~")
    if not equals or not group or group.startswith("-") or not folder.is_dir():
        return argument
    spellings = {file.stem.lower(): file.stem for file in folder.glob("*.yaml")}
    return f"{group}={','.join(spellings.get(choice.strip().lower(), choice) for choice in choices.split(','))}"
