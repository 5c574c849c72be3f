"""Loggers beside the CSV tables: TensorBoard, W&B and trackio, each an observer of the rows of a run."""

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fullbatch.training.state import Row
from fullbatch.training.trainer import Observer

log = logging.getLogger(__name__)

PROJECT = "fullbatch"
"""Where W&B and trackio put the runs, unless WANDB_PROJECT and TRACKIO_PROJECT say otherwise."""


@dataclass(frozen=True)
class Described:
    """What a logger is told of a run.

    Args:
        name: of the run.
        identifier: equal for runs that are the same job, which have the same numbers.
        folder: of the run.
        configuration: dotted key -> value.
    """

    name: str
    identifier: str
    folder: Path
    configuration: Mapping[str, Any]


class Sink(Protocol):
    """Where rows go."""

    first: int
    """The first step that is not there yet."""

    def write(self, row: Row) -> None:
        """Keep what was measured in a step."""

    def close(self) -> None:
        """Let nothing be lost."""


class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder; what an earlier run has left there is superseded."""

    first = 1

    def __init__(self, what: Described) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        from torch.utils.tensorboard.summary import hparams  # noqa: PLC0415

        self._writer = SummaryWriter(str(what.folder / "tensorboard"), purge_step=self.first)
        values = {key: _scalar(value) for key, value in what.configuration.items()}
        for summary in hparams(values, {"train_loss": None, "valid_acc": None}):
            self._writer._get_file_writer().add_summary(summary)  # add_hparams would write into another file

    def write(self, row: Row) -> None:
        """Write a scalar a measured value, at the row's step."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Write what is left."""
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


def wandb(what: Described) -> Hosted:
    """Start, or go on with, the W&B run of this job; WANDB_MODE (offline) and the other variables of W&B count."""
    import wandb as library  # noqa: PLC0415

    run = library.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=what.name,
        id=what.identifier,
        dir=str(what.folder),
        config=dict(what.configuration),
        resume="allow",
    )
    return Hosted(run, run.step)


def trackio(what: Described) -> Hosted:
    """Start a trackio run, kept on this machine unless TRACKIO_SPACE_ID names another place."""
    import trackio as library  # noqa: PLC0415

    run = library.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=what.name, config=dict(what.configuration)
    )
    return Hosted(run)


LOGGERS: dict[str, tuple[Callable[[Described], Sink], str, str]] = {
    "tensorboard": (TensorBoard, "torch.utils.tensorboard", "logging"),
    "wandb": (wandb, "wandb", "wandb"),
    "trackio": (trackio, "trackio", "trackio"),
}
"""Name -> what opens the sink, the module that it needs, the extra that installs that."""


def require_loggers(names: Sequence[str]) -> None:
    """Raise ``ValueError`` where the library of a logger is missing."""
    for name in names:
        _, module, extra = LOGGERS[name]
        try:
            importlib.import_module(module)
        except ImportError:
            raise ValueError(
                f"impl.logger={name}: {name} is not installed (pip install 'fullbatch[{extra}]')"
            ) from None


@contextmanager
def recording(names: Sequence[str], what: Described, rows: Sequence[Row]) -> Iterator[list[Observer]]:
    """Open loggers, hand them the rows so far, yield them as observers and close them.

    A resumed run so has all of its steps in each logger, and none twice.

    Raises:
        ValueError: when a library is missing, or refuses to start.
    """
    require_loggers(names)
    with ExitStack() as stack:
        loggers = [_Logger(name, what) for name in names]
        for logger in loggers:
            stack.callback(logger.close)
            for row in rows:
                logger(row)
        yield list(loggers)


class _Logger:
    """Hands rows on; where the library fails in the middle of a run, it says so and the run goes on without it."""

    def __init__(self, name: str, what: Described) -> None:
        self._name = name
        try:
            self._sink: Sink | None = LOGGERS[name][0](what)
        except Exception as error:  # each library has errors of its own: no account, no network, a full disk
            raise ValueError(f"impl.logger={name}: it cannot start: {error}") from error

    def __call__(self, row: Row) -> None:
        if self._sink is not None and row["step"] >= self._sink.first:
            self._guarded(lambda sink: sink.write(row))

    def close(self) -> None:
        self._guarded(lambda sink: sink.close())

    def _guarded(self, action: Callable[[Sink], None]) -> None:
        if self._sink is None:
            return
        try:
            action(self._sink)
        except Exception as error:  # as above
            self._sink = None
            log.warning("impl.logger=%s: %s; the rest of the run is in its table alone", self._name, error)


def _scalar(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
