"""Somebody who wants something of a run at a certain block."""

import signal

from fullbatch.runtime.stop_requests import Interruption, StopRequest, StopRequests


class RequestAt:
    """Has a wish at the ``block``-th block, counted over all passes from 1."""

    def __init__(self, block: int, wish: StopRequest = StopRequest.STOP) -> None:
        self.block, self.wish, self.blocks, self.fulfilled = block, wish, 0, False

    def pending(self) -> bool:
        self.blocks += 1
        return self.blocks == self.block

    def synchronize(self) -> StopRequest:
        if self.fulfilled or self.blocks < self.block:
            return StopRequest.NONE
        self.fulfilled = True
        return self.wish


class SignalAt(Interruption):
    """SIGTERM arrives at the ``block``-th block of this process, counted over all passes from 1."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block, self.blocks = block, 0

    def watching(self, wishes: StopRequests) -> "Watched":
        return Watched(self, wishes)


class Watched:
    """StopRequests that count the blocks."""

    def __init__(self, caught: SignalAt, wishes: StopRequests) -> None:
        self.caught, self.wishes = caught, wishes

    def pending(self) -> bool:
        self.caught.blocks += 1
        if self.caught.blocks == self.caught.block:
            self.caught.signal = signal.SIGTERM
        return self.wishes.pending()

    def synchronize(self) -> StopRequest:
        return self.wishes.synchronize()
