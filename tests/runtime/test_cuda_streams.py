"""What is asked of CUDA, in which order, for streams and the graphs recorded in them; on a pretended GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fullbatch.runtime.cuda_graphs import CudaGraphs
from fullbatch.runtime.cuda_streams import CudaStream, streams_on

GPU = torch.device("cuda")


class Gpu:
    """Keeps what is done, with the stream that is current."""

    def __init__(self) -> None:
        self.num_streams, self.current, self.done = 0, Stream(self, "main"), list[tuple[str, ...]]()

    def stream(self, device: torch.device) -> "Stream":
        assert device == GPU
        self.num_streams += 1
        return Stream(self, f"stream {self.num_streams}")

    @contextmanager
    def using(self, stream: "Stream") -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


class Stream:
    """One of its queues."""

    def __init__(self, gpu: Gpu, name: str) -> None:
        self.gpu, self.name = gpu, name

    def wait_stream(self, other: "Stream") -> None:
        self.gpu.done.append((self.name, "waits for", other.name))


class Graph:
    """A recording, whose memory is its own or that of a pool."""

    def __init__(self) -> None:
        self.memory: object = object()

    def pool(self) -> object:
        return self.memory

    def replay(self) -> None:
        """Nothing is there to be done."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    some = Gpu()

    @contextmanager
    def graph(cuda_graph: Graph, pool: object, stream: Stream, **_: Any) -> Iterator[None]:
        cuda_graph.memory = cuda_graph.memory if pool is None else pool
        some.done.append((stream.name, "records", str(id(cuda_graph.memory))))
        with some.using(stream):
            yield

    for name, value in {
        "Stream": some.stream,
        "stream": some.using,
        "current_stream": lambda device: some.current,
        "CUDAGraph": Graph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return some


def test_work_waits_for_what_was_there_and_is_waited_for(gpu: Gpu) -> None:
    stream = CudaStream(GPU)
    stream.start(lambda: gpu.done.append((gpu.current.name, "works")))
    assert gpu.current.name == "main"
    stream.join()
    assert gpu.done == [
        ("stream 1", "waits for", "main"),
        ("stream 1", "works"),
        ("main", "waits for", "stream 1"),
    ]


def test_each_stream_is_another_and_only_a_gpu_has_them(gpu: Gpu) -> None:
    assert len(streams_on(GPU, 3)) == gpu.num_streams == 3
    assert streams_on(torch.device("cpu"), 3) == []


def test_graphs_of_streams_that_work_at_the_same_time_share_no_memory(gpu: Gpu) -> None:
    """Neither their own nor the scratch memory of the stream they were recorded in."""
    recorder, streams = CudaGraphs(GPU), streams_on(GPU, 2)

    def work() -> None:
        recorder.record(lambda: None)

    for stream in (*streams, *streams):
        stream.start(work)
    work()
    recorded = [(place, memory[0]) for place, what, *memory in gpu.done if what == "records"]
    first, second, again, second_again, of_main = recorded
    assert (first, second) == (again, second_again)
    for kinds in zip(first, second, of_main, strict=True):
        assert len(set(kinds)) == 3
