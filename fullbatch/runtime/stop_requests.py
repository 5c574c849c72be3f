"""Signals: Ctrl-C and SIGTERM save and leave, SIGUSR1 saves and goes on. Several processes agree on when."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

from fullbatch.runtime.process_group import ALONE, Group

log = logging.getLogger(__name__)


class InterruptedWork(Exception):
    """Work that is not a step was stopped by a signal, with nothing lost that was done; the message says what."""


class Interruption:
    """Remembers the first signal to stop, and how often a save was asked for; a second Ctrl-C ends the run at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    SAVE = tuple(number for number in signal.Signals if number.name == "SIGUSR1")  # Windows has none
    HANDED_ON = tuple(number for number in signal.Signals if number.name == "SIGUSR2")
    """Caught where somebody else has a handler for it, whose turn it is after the save: submitit puts the job back."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.saves = 0
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
        if number in self.SAVE:
            self.saves += 1
            log.info("%s: saving soon", signal.Signals(number).name)
            return
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        log.warning("%s: saving soon, then leaving; Ctrl-C again leaves at once", self.signal.name)


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
    """Catch SIGINT, SIGTERM and SIGUSR1 inside (in the main thread; elsewhere nothing is caught).

    A signal to be handed on goes to its own handler at the end, unless an error ends the run.
    """
    caught = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    _present.append(caught)
    handed_on = [number for number in Interruption.HANDED_ON if callable(signal.getsignal(number))]
    numbers = (*Interruption.SIGNALS, *Interruption.SAVE, *handed_on)
    before = {number: signal.signal(number, caught.receive) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _present.pop()
    if caught.signal in handed_on:
        signal.raise_signal(caught.signal)


class StopRequest(IntEnum):
    """What somebody wants of the run, the larger the more urgent."""

    NONE = 0
    SAVE = 1
    STOP = 2
    """Save, and leave."""


class StopRequests:
    """What signals and the clock want, of any of the processes.

    A process that notices a wish says so to the others and goes to where all ``agree``; there each finds out what all
    want together, so that nobody saves or leaves alone. Requests are numbered: one that is fulfilled may arrive late.

    Args:
        caught: the signals of this process.
        group: the processes.
        max_minutes: after so many without a save, one is wished for; None: never.
    """

    def __init__(self, caught: Interruption, group: Group = ALONE, max_minutes: float | None = None) -> None:
        self._caught, self._group = caught, group
        self._seconds = None if max_minutes is None or not group.leads else 60 * max_minutes
        self._since = time.monotonic()
        self._own = self._fulfilled = self._saves = 0
        self._signal = 0

    @property
    def exit_status(self) -> int:
        """128 + the number of the signal that all agreed to obey, else 0."""
        return 128 + self._signal if self._signal else 0

    def saved(self) -> None:
        """Take notice of a save: the clock starts again."""
        self._since = time.monotonic()

    def pending(self) -> bool:
        """Return whether a request is pending; raise ``PeerLostError`` where a process is gone."""
        self._group.check()
        if self._wants():
            self._own = max(self._known, self._fulfilled) + 1
            if self._group.peer_monitor is not None:
                self._group.peer_monitor.ask(self._own)
        return self._known > self._fulfilled

    def synchronize(self) -> StopRequest:
        """Return what is wished for. Collective."""
        number = self._known if self.pending() else 0
        number, stop = self._group.maximum(number, int(self._caught.signal or 0))
        self._fulfilled = max(self._fulfilled, number)
        self._signal = stop
        return StopRequest.STOP if stop else StopRequest.SAVE if number else StopRequest.NONE

    @property
    def _known(self) -> int:
        """The number of the last wish of any process that has come here."""
        peer_monitor = self._group.peer_monitor
        return max(self._own, 0 if peer_monitor is None else peer_monitor.asked)

    def _wants(self) -> bool:
        """Return whether this process has a wish of its own that it has not made known."""
        signals = self._caught.saves + bool(self._caught)
        due = self._seconds is not None and time.monotonic() - self._since > self._seconds
        news = signals > self._saves or due
        self._saves = signals
        if due:
            self.saved()
        return news
