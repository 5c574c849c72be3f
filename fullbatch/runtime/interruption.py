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
    """Catch SIGINT and SIGTERM inside (in the main thread; elsewhere nothing is caught)."""
    caught = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, caught.receive) for number in Interruption.SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
