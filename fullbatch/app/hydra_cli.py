"""The commands that Hydra configures: train, landscape, verify and gradient-error."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import fullbatch
from fullbatch.app.argv import COMMAND, JOBS, config_files, is_torchrun_worker, jobs_of_sweep, normalized
from fullbatch.app.exit_status import ExitStatus, ends_sweep
from fullbatch.app.refusals import describe_refusal
from fullbatch.runtime.console import console_streams, output_is_lost
from fullbatch.runtime.files import format_error
from fullbatch.runtime.nesting import BadConfigurationError
from fullbatch.runtime.parents import end_with_parent
from fullbatch.settings.parse import require_bounded_yaml

CONFIG = Path(fullbatch.__file__).parent.parent / "config"
PLUGINS = {
    "joblib": ("hydra_joblib_launcher", "sweep"),
    **dict.fromkeys(("submitit", "slurm"), ("hydra_submitit_launcher", "slurm")),
}
"""Beginnings of the names of launchers -> the plugin that they need, and the extra that installs it."""


class LauncherError(HydraException):
    """A launcher that cannot be used here."""


class SweepError(HydraException):
    """A sweep that has no jobs."""


class JobEndedBadlyError(Exception):
    """Carries a job's exit status from a launcher's process to the process that launched it."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def train(arguments: Sequence[str] | None = None) -> int:
    """Train a model, or the models of a sweep; return the exit status.

    It is 0 in all of torchrun's processes but the first, which reports what is wrong in any of them: torchrun ends the
    others as soon as one fails.
    """
    if not is_torchrun_worker():
        return run_hydra("fullbatch.app.train:train_job", arguments)
    with tempfile.TemporaryDirectory() as folder:  # what Hydra writes
        places = [f"hydra.{kind}.dir='{folder}'" for kind in ("run", "sweep")]
        run_hydra("fullbatch.app.train:train_job", [*(sys.argv[1:] if arguments is None else arguments), *places])
    return ExitStatus.DONE


def landscape(arguments: Sequence[str] | None = None) -> int:
    """Compute the loss landscape around a checkpoint; return the exit status."""
    return run_hydra("fullbatch.app.landscape:landscape_job", arguments)


def verify(arguments: Sequence[str] | None = None) -> int:
    """Evaluate a checkpoint again; return the exit status."""
    with console_streams():
        status = run_hydra("fullbatch.app.verify:verify_job", arguments)
        return status or (ExitStatus.MISTAKE if output_is_lost() else ExitStatus.DONE)


def gradient_error(arguments: Sequence[str] | None = None) -> int:
    """Measure the error of the full gradient; return the exit status."""
    return run_hydra("fullbatch.app.gradient_error:gradient_error_job", arguments)


def run_hydra(job: str, arguments: Sequence[str] | None = None) -> int:
    """Call a job, ``package.module:function``, with the configuration of the command line, or of each job of a sweep.

    The module of the job is imported when the first configuration is composed: ``--help`` and ``--cfg job`` do not
    import torch. Without ``arguments`` the command line is that of this process.

    Returns the largest exit status of the jobs, or that of the error that ended Hydra. With HYDRA_FULL_ERROR=1 in the
    environment such errors are raised, with their stack trace.
    """
    statuses, launching_process = [int(ExitStatus.DONE)], os.getpid()

    def task(cfg: DictConfig) -> None:  # launchers pickle it by value
        os.chdir(HydraConfig.get().runtime.cwd)  # hydra.job.chdir=True would move checkpoints, tables and data
        module, _, function = job.partition(":")
        status = getattr(import_module(module), function)(cfg)
        statuses.append(status)
        if os.getpid() != launching_process and status:
            raise JobEndedBadlyError(status)
        if ends_sweep(status):
            sys.exit(status)

    if arguments is not None:
        sys.argv[1:] = arguments
    main = hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="cfg")(task)
    with console_streams(survive_hangup=True):
        return _reporting_errors(main) or max(statuses)


def _reporting_errors(main: Callable[[], None]) -> int:
    if os.environ.get("HYDRA_FULL_ERROR"):
        with _command_in_environment():
            main()
        return ExitStatus.DONE
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them its own way
    try:
        with _command_in_environment():
            main()
    except (Exception, KeyboardInterrupt) as error:
        described = _describe(error)
        if described is None:
            raise
        status, message = described
        sys.stderr.write(f"{message}\n" if message and not is_torchrun_worker() else "")
        return status
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
    return ExitStatus.DONE


@contextmanager
def _command_in_environment() -> Iterator[None]:
    """Normalize the command line, and pass it on to the processes of launchers, which inherit the environment."""
    sys.argv[1:] = normalized(sys.argv[1:], CONFIG)
    os.environ[COMMAND] = json.dumps(sys.argv)
    try:
        check_launcher(sys.argv[1:])
        for path in config_files(sys.argv[1:]):
            require_bounded_yaml(path)
        yield
        if jobs_of_sweep() == []:
            raise SweepError("the sweep has no jobs: one of its keys has no values")
    finally:
        os.environ.pop(COMMAND, None)
        os.environ.pop(JOBS, None)


def _describe(error: BaseException) -> tuple[int, str] | None:
    """Return exit status and message of an error outside of the jobs; None for an unexpected one."""
    if isinstance(error, KeyboardInterrupt):
        return ExitStatus.INTERRUPTED, "interrupted"
    if isinstance(error, JobEndedBadlyError):
        return error.status, ""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ExitStatus.REFUSED, describe_refusal(error)
    if isinstance(error, YAMLError | UnicodeDecodeError):  # in a file that Hydra reads
        error = BadConfigurationError(f"not a configuration: {' '.join(str(error).split())}")
    if isinstance(error, OSError | BadConfigurationError):
        return ExitStatus.MISTAKE, format_error(error)
    if type(error).__module__.split(".")[0] in ("joblib", "submitit"):
        reason = " ".join(str(error).split())[:300]
        return ExitStatus.REFUSED, f"the launcher did not finish every job ({reason}); the same command continues them"
    return None


def check_launcher(arguments: Sequence[str]) -> None:
    """Raise ``LauncherError`` for a launcher that is not installed, or that of SLURM where that is not."""
    chosen = [argument.partition("=")[2] for argument in arguments if argument.startswith("hydra/launcher=")]
    for launcher in chosen:
        plugin, extra = next((value for prefix, value in PLUGINS.items() if launcher.startswith(prefix)), ("", ""))
        if plugin and not find_spec(f"hydra_plugins.{plugin}"):
            raise LauncherError(f"hydra/launcher={launcher}: not installed (pip install 'fullbatch[{extra}]')")
        if "slurm" in launcher and not shutil.which("srun"):
            raise LauncherError(f"hydra/launcher={launcher}: there is no srun here; run this where jobs are submitted")
        if plugin == PLUGINS["joblib"][0]:
            _watch_parent_of_joblib()


def _watch_parent_of_joblib() -> None:
    """Let the processes of joblib end with this one, which they would otherwise outlive."""
    from joblib.parallel import LokyBackend, register_parallel_backend  # noqa: PLC0415 (of an extra)

    class WatchingBackend(LokyBackend):
        def configure(self, *args: Any, **kwargs: Any) -> Any:
            return super().configure(*args, initializer=end_with_parent, initargs=(os.getpid(), 0.0), **kwargs)

    register_parallel_backend("loky", WatchingBackend)
