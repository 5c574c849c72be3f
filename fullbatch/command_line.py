"""Around Hydra: command lines before it sees them, and its refusals without a stack trace."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from fullbatch.runtime.files import told

REPLACED = tuple(f"{group}.augmentations_{split}" for group in ("data", "data.db") for split in ("train", "val"))
SWEEP = ("-m", "--multirun")
REFUSED, MISTAKE, INTERRUPTED = 1, 2, 130


def reported(main: Callable[[], None], config_folder: Path) -> int:
    """Call Hydra's ``main`` with the ``normalized`` command line of this process.

    Returns 0; or says what Hydra (1) or the file system (2) refused, and returns that.

    An impatient Ctrl-C is 130.

    With HYDRA_FULL_ERROR=1 in the environment errors are raised, with all of their stack trace.
    """
    if os.environ.get("HYDRA_FULL_ERROR"):
        sys.argv[1:] = normalized(sys.argv[1:], config_folder)
        main()
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, instead of printing them its own way
    try:
        sys.argv[1:] = normalized(sys.argv[1:], config_folder)
        main()
    except (HydraException, OmegaConfBaseException) as error:
        causes = [str(error), str(error.__cause__ or "")]
        message = "\n".join(dict.fromkeys(line for text in causes for line in text.splitlines() if line.strip()))
        status = REFUSED
    except OSError as error:
        message, status = told(error), MISTAKE
    except KeyboardInterrupt:
        message, status = "interrupted", INTERRUPTED
    else:
        message, status = "", 0
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
    sys.stderr.write(f"{message}\n" if message else "")
    return status


def together(lead: Callable[[], int]) -> int:
    """Call ``lead`` in the first process alone, where torchrun has started several; the others follow it."""
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return lead()
    from fullbatch.follow import follow_all  # noqa: PLC0415 (imports torch)
    from fullbatch.processes import dismiss  # noqa: PLC0415

    try:
        if os.environ["RANK"].strip() != "0":
            return follow_all()
        try:
            return lead()
        finally:
            dismiss()
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return MISTAKE


def normalized(arguments: Sequence[str], config_folder: Path) -> list[str]:
    """Say in Hydra's grammar what users mean.

    - ``data=cifar10``: choices are spelled as their files below ``config_folder``.
    - ``key=~/folder``: the tilde, which Hydra refuses, is written out.
    - ``data.augmentations_train={...}``: the whole table is replaced; Hydra would add to it, and refuse new names.
    - ``-m`` may stand anywhere.

    Raises ``OverrideParseException`` for a value without a key, on which Hydra fails an assertion.
    """
    arguments = sorted(arguments, key=lambda argument: argument not in SWEEP)
    return [override for argument in arguments for override in _normalized(argument, config_folder)]


def _normalized(argument: str, config_folder: Path) -> list[str]:
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
