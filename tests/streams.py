"""Streams as adversaries: they work as early or as late as they may."""

import random
from collections.abc import Callable


class Immediate:
    """Works at once."""

    def start(self, work: Callable[[], None]) -> None:
        """Do it."""
        work()

    def join(self) -> None:
        """Nothing is left."""


class Late:
    """Works when it is waited for, not before: whoever does not wait finds nothing."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def start(self, work: Callable[[], None]) -> None:
        """Keep it for later."""
        self.waiting.append(work)

    def join(self) -> None:
        """Do all that was started."""
        waiting, self.waiting = self.waiting, []
        for work in waiting:
            work()


class Anytime(Late):
    """Works at any time from the start to the end, when it is the turn of another stream of ``together``, too."""

    def __init__(self, together: list["Anytime"], seed: int) -> None:
        super().__init__()
        self.together, self.random = together, random.Random(seed)
        together.append(self)

    def start(self, work: Callable[[], None]) -> None:
        """Keep it, and do what some streams have kept."""
        super().start(work)
        for stream in self.random.sample(self.together, k=self.random.randint(0, len(self.together))):
            stream.join()
