"""Logs of a run: a file in its folder, lines or a live progress bar on the terminal."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fullbatch.runtime.console import console_streams, stream_error
from fullbatch.runtime.plain_text import PlainConsole, printable

log = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Prints messages above the progress bar; warnings and errors go to standard error.

    That one of the streams cannot be written any more is logged once.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.out = PlainConsole(file=sys.stdout, soft_wrap=True)
        self.err = PlainConsole(file=sys.stderr, soft_wrap=True)
        self._lost: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        console = self.err if record.levelno >= logging.WARNING else self.out
        console.print(self.format(record))
        for name, stream in {"standard output": self.out.file, "standard error": self.err.file}.items():
            error = stream_error(stream)
            if error is not None and name not in self._lost:
                self._lost.add(name)
                reason = str(error.strerror).lower()
                log.warning("%s: %s; the job goes on, and its log file is complete", name, reason)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


@contextmanager
def job_log(file: Path) -> Iterator[ConsoleHandler]:
    """Log to the terminal and, with times and stack traces, to ``file``; yield the terminal."""
    to_file = logging.FileHandler(file, encoding="utf-8")
    to_file.setFormatter(_PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("fullbatch")
    package.setLevel(logging.DEBUG)
    with console_streams():
        console = ConsoleHandler()
        package.addHandler(to_file)
        package.addHandler(console)
        try:
            yield console
        finally:
            package.removeHandler(console)
            package.removeHandler(to_file)
            to_file.close()


@contextmanager
def worker_log() -> Iterator[ConsoleHandler]:
    """Log only the errors that end a worker, to the terminal; yield the terminal."""
    package = logging.getLogger("fullbatch")
    with console_streams():
        console = ConsoleHandler()
        console.setLevel(logging.ERROR)
        console.addFilter(lambda record: record.name in ("fullbatch.app.job_scope", "fullbatch.runtime.peer_monitor"))
        package.addHandler(console)
        try:
            yield console
        finally:
            package.removeHandler(console)


class ProgressBar:
    """Observes the steps: a live bar on a terminal, plain lines elsewhere."""

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, console: Console, steps: int, done: int = 0) -> None:
        self._steps, self._last_line = steps, -self.SECONDS_BETWEEN_LINES
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[values]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("steps", total=steps, completed=done, values="")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, row: Mapping[str, float]) -> None:
        """Show a step."""
        text = f"loss {row['train_loss']:.4f}  train {row['train_acc']:.2%}"
        if "valid_acc" in row:
            text += f"  valid {row['valid_acc']:.2%}"
        text += f"  lr {row['lr']:.4g}" if "lr" in row else ""
        self._bar.update(self._task, completed=row["step"], values=text)
        # Each validated step has a line; elsewhere than on a terminal, which has the bar, so does one every 10 seconds.
        waited = time.monotonic() - self._last_line > self.SECONDS_BETWEEN_LINES
        if "valid_acc" in row or (self._bar.disable and waited):
            self._last_line = time.monotonic()
            log.info("step %d/%d  %s  (%.2f s)", row["step"], self._steps, text, row["train_time"])


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show the progress of a task of ``total`` items, and the remaining time.

    Yields a function to call with the number of items that were done. A live bar on a terminal, elsewhere a line
    every 10 seconds.
    """
    console = PlainConsole(file=sys.stdout, soft_wrap=True)
    start = last_line = time.monotonic()
    count = done
    columns = (
        TextColumn("{task.description}", markup=False),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(printable(what), total=total, completed=done)

        def advance(number: int) -> None:
            nonlocal count, last_line
            count += number
            bar.update(task, completed=count)
            now = time.monotonic()
            if bar.disable and now - last_line > ProgressBar.SECONDS_BETWEEN_LINES:
                left = (now - start) / (count - done) * (total - count)
                log.info("%s: %s of %s, %.0f s left", what, f"{count:,}", f"{total:,}", left)
                last_line = now

        yield advance
