"""Requests to save or to stop that arrive at a certain block."""

import signal

from fullbatch.runtime.stop_requests import Interruption, StopRequest, StopRequests


class RequestAt:
    """Asks for something at the ``block``-th block, counted over all passes from 1."""

    def __init__(self, block: int, request: StopRequest = StopRequest.STOP) -> None:
        self.block, self.request, self.blocks, self.fulfilled = block, request, 0, False

    def pending(self) -> bool:
        self.blocks += 1
        return self.blocks == self.block

    def synchronize(self) -> StopRequest:
        if self.fulfilled or self.blocks < self.block:
            return StopRequest.NONE
        self.fulfilled = True
        return self.request


class SignalAt(Interruption):
    """SIGTERM arrives at the ``block``-th block of this process, counted over all passes from 1."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block, self.blocks = block, 0

    def watching(self, requests: StopRequests) -> "CountedRequests":
        return CountedRequests(self, requests)


class CountedRequests:
    """``StopRequests`` that count the blocks and raise the signal."""

    def __init__(self, caught: SignalAt, requests: StopRequests) -> None:
        self.caught, self.requests = caught, requests

    def pending(self) -> bool:
        self.caught.blocks += 1
        if self.caught.blocks == self.caught.block:
            self.caught.signal = signal.SIGTERM
        return self.requests.pending()

    def synchronize(self) -> StopRequest:
        return self.requests.synchronize()
