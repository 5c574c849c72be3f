"""Loggers: TensorBoard, W&B and trackio observe the rows of a run, in addition to its table."""

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fullbatch.runtime.plain_text import printable
from fullbatch.training.state import Row
from fullbatch.training.trainer import Observer

log = logging.getLogger(__name__)

PROJECT = "fullbatch"
"""Where W&B and trackio put the runs, unless WANDB_PROJECT and TRACKIO_PROJECT say otherwise."""


@dataclass(frozen=True)
class RunDescription:
    """The description of a run for a logger.

    Args:
        name: name of the run.
        identifier: hash of the job; equal for runs with the same numbers.
        folder: folder of the run.
        configuration: dotted key -> value.
    """

    name: str
    identifier: str
    folder: Path
    configuration: Mapping[str, Any]


class Sink(Protocol):
    """The library of a logger, which receives rows."""

    first: int
    """The first step that the logger does not have yet."""

    def write(self, row: Row) -> None:
        """Log the row of a step."""

    def close(self) -> None:
        """Flush and close."""


class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder; events of an earlier run there are replaced."""

    first = 1

    def __init__(self, run: RunDescription) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        from torch.utils.tensorboard.summary import hparams  # noqa: PLC0415

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=self.first)
        values = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in run.configuration.items()
        }
        for summary in hparams(values, {"train_loss": None, "valid_acc": None}):
            self._writer._get_file_writer().add_summary(summary)  # add_hparams would write into another file

    def write(self, row: Row) -> None:
        """Write one scalar per measured value, at the row's step."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Flush and close the writer."""
        self._writer.close()


class Hosted:
    """A run of W&B or of trackio.

    Args:
        run: has ``log(values, step=...)`` and ``finish()``.
        first: the first step that it lacks.
    """

    def __init__(self, run: Any, first: int = 0) -> None:
        self._run, self.first = run, first

    def write(self, row: Row) -> None:
        """Log the measured values at the row's step."""
        self._run.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def wandb(run: RunDescription) -> Hosted:
    """Start or resume the W&B run of this job; W&B reads its environment variables, such as WANDB_MODE=offline."""
    import wandb as library  # noqa: PLC0415

    hosted_run = library.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=printable(run.name),
        id=run.identifier,
        dir=str(run.folder),
        config=dict(run.configuration),
        resume="allow",
    )
    return Hosted(hosted_run, hosted_run.step)


def trackio(run: RunDescription) -> Hosted:
    """Start a trackio run, stored on this machine unless TRACKIO_SPACE_ID names another place."""
    import trackio as library  # noqa: PLC0415

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    return Hosted(library.init(project=project, name=printable(run.name), config=dict(run.configuration)))


LOGGERS: dict[str, tuple[Callable[[RunDescription], Sink], str, str]] = {
    "tensorboard": (TensorBoard, "torch.utils.tensorboard", "logging"),
    "wandb": (wandb, "wandb", "wandb"),
    "trackio": (trackio, "trackio", "trackio"),
}
"""Name -> the function that opens the sink, the module that it needs, the extra that installs the module."""


def require_loggers(names: Sequence[str]) -> None:
    """Raise ``ValueError`` if the library of a logger is missing."""
    for name in names:
        _, module, extra = LOGGERS[name]
        try:
            importlib.import_module(module)
        except ImportError:
            raise ValueError(
                f"impl.logger={name}: {name} is not installed (pip install 'fullbatch[{extra}]')"
            ) from None


@contextmanager
def start_loggers(names: Sequence[str], run: RunDescription, rows: Sequence[Row]) -> Iterator[list[Observer]]:
    """Open loggers, log the rows so far, yield the loggers as observers and close them.

    Each logger then has all steps of a resumed run, and none of them twice.

    Raises:
        ValueError: when a library is missing or cannot start.
    """
    require_loggers(names)
    with ExitStack() as stack:
        loggers = [_Logger(name, run) for name in names]
        for logger in loggers:
            stack.callback(logger.close)
            for row in rows:
                logger(row)
        yield list(loggers)


class _Logger:
    """Passes rows to a sink. If its library fails, a warning is logged and the run continues without it."""

    def __init__(self, name: str, run: RunDescription) -> None:
        self._name = name
        try:
            self._sink: Sink | None = LOGGERS[name][0](run)
        except Exception as error:  # each library has errors of its own: no account, no network, a full disk
            raise ValueError(f"impl.logger={name}: cannot start: {error}") from error

    def __call__(self, row: Row) -> None:
        if self._sink is not None and row["step"] >= self._sink.first:
            self._attempt(lambda sink: sink.write(row))

    def close(self) -> None:
        self._attempt(lambda sink: sink.close())

    def _attempt(self, action: Callable[[Sink], None]) -> None:
        if self._sink is None:
            return
        try:
            action(self._sink)
        except Exception as error:  # as above
            self._sink = None
            log.warning("impl.logger=%s: %s; the remaining steps are only in the table", self._name, error)
