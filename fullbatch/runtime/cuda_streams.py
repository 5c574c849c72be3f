"""CUDA streams: queues of a GPU beside the one that everything else goes through."""

from collections.abc import Callable

import torch


class CudaStream:
    """A stream of its own; implements ``fullbatch.objective.in_flight.Stream``.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def start(self, work: Callable[[], None]) -> None:
        """Do ``work`` after all that the current stream has been given so far."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work()

    def join(self) -> None:
        """Let what the current stream is given from now on wait for all the work started here."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def streams_on(device: torch.device, number: int) -> list[CudaStream]:
    """Return streams of a CUDA device, none of any other."""
    return [CudaStream(device) for _ in range(number)] if device.type == "cuda" else []
