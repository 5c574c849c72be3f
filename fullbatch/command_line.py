"""Command lines before Hydra sees them: choices in any case, home folders, tables that replace tables."""

from collections.abc import Sequence
from pathlib import Path

REPLACED = ("data.augmentations_train", "data.augmentations_val")


def normalized(arguments: Sequence[str], config_folder: Path) -> list[str]:
    """Say in Hydra's grammar what users mean.

    - ``data=cifar10``: choices are spelled as their files below ``config_folder``.
    - ``key=~/folder``: the tilde, which Hydra refuses, is written out.
    - ``data.augmentations_train={...}``: the whole table is replaced; Hydra would add to it, and refuse new names.
    """
    return [override for argument in arguments for override in _normalized(argument, config_folder)]


def _normalized(argument: str, config_folder: Path) -> list[str]:
    key, equals, value = argument.partition("=")
    if not equals or not key or key.startswith("-"):
        return [argument]
    if key in REPLACED and value.startswith("{"):
        return [f"{key}=", f"++{argument}"]
    folder = config_folder / key.lstrip("+~")
    if folder.is_dir():
        spellings = {file.stem.lower(): file.stem for file in folder.glob("*.yaml")}
        value = ",".join(spellings.get(choice.strip().lower(), choice) for choice in value.split(","))
    elif value.startswith("~/"):
        value = str(Path(value).expanduser())
    return [f"{key}={value}"]
