"""CUDA graphs: the work of a sub-batch on a GPU, recorded once and started as a whole."""

from collections.abc import Callable

import torch


class CudaGraphs:
    """Records work into CUDA graphs; implements ``fullbatch.objective.replay.Recorder``.

    Graphs recorded while the same stream is current share memory: what they compute with is overwritten by each other,
    and they must be replayed on that stream, one after the other. Results are in memory that is held: sums from
    outside, tensors that somebody keeps. Of each stream the last graph is kept until the next one is recorded, since a
    pool that no graph uses is given up.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recording_streams: dict[torch.cuda.Stream, torch.cuda.Stream] = {}
        self._last: dict[torch.cuda.Stream, torch.cuda.CUDAGraph] = {}

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Do ``work`` and return what does it again; ``RuntimeError`` for work that waits for the device."""
        current, graph = torch.cuda.current_stream(self._device), torch.cuda.CUDAGraph()
        if current not in self._recording_streams:  # each its own, whose scratch memory the graphs go on using
            self._recording_streams[current] = torch.cuda.Stream(self._device)
        pool = self._last[current].pool() if current in self._last else None
        # other threads of the process may go on using the device, as those that pin memory do
        with torch.cuda.graph(
            graph, pool=pool, stream=self._recording_streams[current], capture_error_mode="thread_local"
        ):
            work()
        self._last[current] = graph
        graph.replay()  # recording has done nothing
        return graph.replay


def recorder_on(device: torch.device) -> CudaGraphs | None:
    """Return what records work on a CUDA device, None for any other."""
    return CudaGraphs(device) if device.type == "cuda" else None
