"""Ctrl-C and SIGTERM: finish the step, save, leave."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class Interruption:
    """Remembers the first signal; a second Ctrl-C ends the run at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    HANDED_ON = tuple(number for number in signal.Signals if number.name == "SIGUSR2")  # Windows has none
    """Caught where somebody else has a handler for it, whose turn it is after the save: submitit puts the job back."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + self.signal if self.signal else 0

    def receive(self, number: int, _: FrameType | None) -> None:
        """Handle a signal."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        log.warning("%s: finishing this step, then saving; Ctrl-C again leaves at once", self.signal.name)


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Catch SIGINT and SIGTERM inside (in the main thread; elsewhere nothing is caught).

    A signal to be handed on goes to its own handler at the end, unless an error ends the run.
    """
    caught = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    handed_on = [number for number in Interruption.HANDED_ON if callable(signal.getsignal(number))]
    before = {number: signal.signal(number, caught.receive) for number in (*Interruption.SIGNALS, *handed_on)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught.signal in handed_on:
        signal.raise_signal(caught.signal)
