"""Signals: Ctrl-C and SIGTERM save and stop, SIGUSR1 saves and goes on; all processes of a run do so together."""

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
    """A signal stopped work outside of steps; what was done is not lost. The message says what was stopped."""


class Interruption:
    """The first signal to stop, and the number of signals to save; a second Ctrl-C raises ``KeyboardInterrupt``."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    SAVE = tuple(number for number in signal.Signals if number.name == "SIGUSR1")  # Windows has none
    FORWARDED = tuple(number for number in signal.Signals if number.name == "SIGUSR2")
    """Caught only where another handler exists, which is called after the save: submitit's requeues the job."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.saves = 0
        self._process = os.getpid()

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """128 + the number of the signal, as in shells; 0 without one."""
        return 128 + self.signal if self.signal else 0

    def receive(self, number: int, _: FrameType | None) -> None:
        """Handle a signal; processes that inherited the handler ignore it."""
        if os.getpid() != self._process:
            return
        if number in self.SAVE:
            self.saves += 1
            log.info("%s: saving soon", signal.Signals(number).name)
            return
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        log.warning("%s: saving soon, then stopping; Ctrl-C again stops at once", self.signal.name)


_current = [Interruption()]  # a stack, as scopes are nested


def stop_if_interrupted(what: str) -> None:
    """Raise ``InterruptedWork`` with the message ``what`` if a signal to stop has arrived."""
    if _current[-1]:
        raise InterruptedWork(what)


def interrupted() -> bool:
    """Return whether a signal to stop has arrived."""
    return bool(_current[-1])


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Catch SIGINT, SIGTERM and SIGUSR1 in the block, in the main thread; other threads catch nothing.

    A signal that is forwarded reaches its own handler at the end of the block, unless an error leaves it.
    """
    caught = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    _current.append(caught)
    forwarded = [number for number in Interruption.FORWARDED if callable(signal.getsignal(number))]
    numbers = (*Interruption.SIGNALS, *Interruption.SAVE, *forwarded)
    before = {number: signal.signal(number, caught.receive) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _current.pop()
    if caught.signal in forwarded:
        signal.raise_signal(caught.signal)


class StopRequest(IntEnum):
    """What is requested of a run, by increasing priority."""

    NONE = 0
    SAVE = 1
    STOP = 2
    """Save, and stop."""


class StopRequests:
    """The requests of signals and of the clock, in any of the processes.

    A process that has a request sends its number to the others and goes on until it synchronizes. A process that
    receives one does the same. There all learn what is requested, so that none saves or stops alone. Requests are
    numbered, because one that is fulfilled may arrive late.

    Args:
        caught: the signals of this process.
        group: the processes.
        max_minutes: minutes without a save after which one is requested; None: never.
    """

    def __init__(self, caught: Interruption, group: Group = ALONE, max_minutes: float | None = None) -> None:
        self._caught, self._group = caught, group
        self._seconds = None if max_minutes is None or not group.is_main else 60 * max_minutes
        self._last_save = time.monotonic()
        self._own = self._fulfilled = self._num_signals = 0
        self._signal = 0

    @property
    def exit_status(self) -> int:
        """128 + the number of the signal at which all stop; 0 without one."""
        return 128 + self._signal if self._signal else 0

    def saved(self) -> None:
        """Restart the clock after a save."""
        self._last_save = time.monotonic()

    def pending(self) -> bool:
        """Return whether a request is pending; raise ``PeerLostError`` if a process is gone."""
        self._group.check()
        num_signals = self._caught.saves + bool(self._caught)
        due = self._seconds is not None and time.monotonic() - self._last_save > self._seconds
        if num_signals > self._num_signals or due:
            self._own = max(self._latest, self._fulfilled) + 1
            if self._group.peer_monitor is not None:
                self._group.peer_monitor.request(self._own)
        self._num_signals = num_signals
        if due:
            self.saved()
        return self._latest > self._fulfilled

    def synchronize(self) -> StopRequest:
        """Return what is requested in any process. Collective."""
        number = self._latest if self.pending() else 0
        number, self._signal = self._group.maximum(number, int(self._caught.signal or 0))
        self._fulfilled = max(self._fulfilled, number)
        return StopRequest.STOP if self._signal else StopRequest.SAVE if number else StopRequest.NONE

    @property
    def _latest(self) -> int:
        """The number of the latest request that this process has made or received."""
        peer_monitor = self._group.peer_monitor
        return max(self._own, 0 if peer_monitor is None else peer_monitor.requested)
