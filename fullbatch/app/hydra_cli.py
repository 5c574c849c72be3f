"""Around Hydra: command lines before it sees them, and its refusals without a stack trace."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from fullbatch.runtime.files import format_error

REPLACED = tuple(f"{group}.augmentations_{split}" for group in ("data", "data.db") for split in ("train", "val"))
SWEEP = ("-m", "--multirun")
COMMAND = "FULLBATCH_COMMAND"
"""In the environment of the processes of a sweep: its command line."""
PLUGINS = {
    "joblib": ("hydra_joblib_launcher", "sweep"),
    **dict.fromkeys(("submitit", "slurm"), ("hydra_submitit_launcher", "slurm")),
}
"""Beginnings of the names of launchers: the plugin that they need, and the extra that installs it."""
DONE, REFUSED, MISTAKE, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 130


class LauncherError(HydraException):
    """A launcher that cannot be used here."""


class JobEndedBadlyError(Exception):
    """Carries a job's exit status from the process that ran it to the one that launched it."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def reported(main: Callable[[], None], config_folder: Path) -> int:
    """Call Hydra's ``main`` with the ``normalized`` command line of this process.

    Returns 0; or says what Hydra (1) or the file system (2) refused, and returns that.

    An impatient Ctrl-C is 130. Of jobs in processes of a launcher, the status of the first that ended badly.

    With HYDRA_FULL_ERROR=1 in the environment errors are raised, with all of their stack trace.
    """
    if os.environ.get("HYDRA_FULL_ERROR"):
        with _announced(config_folder):
            main()
        return DONE
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, instead of printing them its own way
    try:
        with _announced(config_folder):
            main()
    except Exception as error:
        message, status = _told(error)
        if message is None:
            raise
    except KeyboardInterrupt:
        message, status = "interrupted", INTERRUPTED
    else:
        message, status = "", DONE
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
    sys.stderr.write(f"{message}\n" if message else "")
    return status


@contextmanager
def _announced(config_folder: Path) -> Iterator[None]:
    """Tell the processes of launchers, which inherit the environment, what was typed."""
    sys.argv[1:] = normalized(sys.argv[1:], config_folder)
    os.environ[COMMAND] = json.dumps(sys.argv)
    try:
        check_launcher(sys.argv[1:])
        yield
    finally:
        os.environ.pop(COMMAND, None)


def _told(error: Exception) -> tuple[str | None, int]:
    """Return message and exit status for an error; no message for one that is nobody's mistake."""
    if isinstance(error, JobEndedBadlyError):
        return "", error.status
    if isinstance(error, HydraException | OmegaConfBaseException):
        causes = [str(error), str(error.__cause__ or "")]
        lines = dict.fromkeys(line for text in causes for line in text.splitlines() if line.strip())
        return "\n".join(lines), REFUSED
    if isinstance(error, OSError):
        return format_error(error), MISTAKE
    if type(error).__module__.split(".")[0] in ("joblib", "submitit"):
        what = " ".join(str(error).split())[:300]
        return f"the launcher did not bring every job to its end ({what}); the same line again continues", REFUSED
    return None, REFUSED


def typed() -> list[str]:
    """Return the command line of this run; in a process of a launcher, that of the sweep."""
    announced = os.environ.get(COMMAND)
    return list(json.loads(announced)) if announced else sys.argv


def jobs_of(arguments: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a ``normalized`` command line, in Hydra's order: one job without ``-m``.

    Empty where a sweeper other than Hydra's own decides.
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


def check_launcher(arguments: Sequence[str]) -> None:
    """Raise ``LauncherError`` for a launcher that is not installed, or that of SLURM where that is not."""
    chosen = [argument.partition("=")[2] for argument in arguments if argument.startswith("hydra/launcher=")]
    for launcher in chosen:
        plugin, extra = next((value for prefix, value in PLUGINS.items() if launcher.startswith(prefix)), ("", ""))
        if plugin and not find_spec(f"hydra_plugins.{plugin}"):
            raise LauncherError(f"hydra/launcher={launcher}: not installed (pip install 'fullbatch[{extra}]')")
        if "slurm" in launcher and not shutil.which("srun"):
            raise LauncherError(f"hydra/launcher={launcher}: there is no srun here; type this where jobs are submitted")


def together(lead: Callable[[], int]) -> int:
    """Call ``lead`` in the first process alone, where torchrun has started several; the others follow it."""
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return lead()
    from fullbatch.app.processes import dismiss  # noqa: PLC0415
    from fullbatch.app.worker import follow_all  # noqa: PLC0415 (imports torch)

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
