"""CUDA graphs: the work of a sub-batch on a GPU, recorded once and started as a whole."""

from collections.abc import Callable

import torch


class CudaGraphs:
    """Records work into CUDA graphs, which share memory; implements ``fullbatch.objective.replay.Recorder``.

    The last graph is kept until the next one is recorded, since a pool that no graph uses is given up. What graphs of
    one pool compute with is overwritten by each other; results are in memory from outside, such as sums.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._last: torch.cuda.CUDAGraph | None = None

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Do ``work`` and return what does it again; ``RuntimeError`` for work that waits for the device."""
        graph = torch.cuda.CUDAGraph()
        pool = None if self._last is None else self._last.pool()
        # other threads of the process may go on using the device, as those that pin memory do
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        self._last = graph
        graph.replay()  # recording has done nothing
        return graph.replay


def recorder_on(device: torch.device) -> CudaGraphs | None:
    """Return what records work on a CUDA device, None for any other."""
    return CudaGraphs(device) if device.type == "cuda" else None
