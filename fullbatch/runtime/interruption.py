"""Ctrl-C and SIGTERM: finish the step, or the piece of what is built, save, leave."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class InterruptedWork(Exception):
    """Work that is not a step was stopped by a signal, with nothing lost that was done; the message says what."""


class Interruption:
    """Remembers the first signal; a second Ctrl-C ends the run at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._process = os.getpid()

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + self.signal if self.signal else 0

    def receive(self, number: int, _: FrameType | None) -> None:
        """Handle a signal; processes that inherited this leave it to the one that started them."""
        if os.getpid() != self._process:
            return
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        log.warning("%s: finishing this step or piece, then saving; Ctrl-C again leaves at once", self.signal.name)


_present = [Interruption()]  # a stack: signals are the process' own


def stop_if_interrupted(what: str) -> None:
    """Raise ``InterruptedWork`` with the message ``what`` where a signal has asked to stop."""
    if _present[-1]:
        raise InterruptedWork(what)


def interrupted() -> bool:
    """Say whether a signal has asked to stop."""
    return bool(_present[-1])


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Catch SIGINT and SIGTERM inside (in the main thread; elsewhere nothing is caught)."""
    caught = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    _present.append(caught)
    before = {number: signal.signal(number, caught.receive) for number in Interruption.SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _present.pop()
