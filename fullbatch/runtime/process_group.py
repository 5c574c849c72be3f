"""The processes that share a run, and their collective operations."""

import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fullbatch.runtime.files import format_error
from fullbatch.runtime.peer_monitor import LOCAL, PeerLostError, PeerMonitor, connect_peers
from fullbatch.runtime.ranks import Ranks, share
from fullbatch.tensors import copy_, flatten, unflatten
from fullbatch.typing import Tensors

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # public, but not listed

T = TypeVar("T")
BUCKET = 1 << 24
"""Entries that are reduced at once: large enough for the network, small beside the gradients themselves."""
START_TIMEOUT = timedelta(minutes=10)
"""How long processes wait for each other to start."""
NO_TIMEOUT = timedelta(days=365)
"""Processes do not time out: a step may take an hour, and the peer monitor detects when one is gone."""

_SINGLE = Ranks(0, 1)


@dataclass(frozen=True)
class Group:
    """The processes of a run, as seen from one of them; without arguments, a single process.

    All methods except ``check`` and ``report_failure`` are collective: every process calls them, in the same order.
    They raise ``PeerLostError`` when another process has ended early.
    """

    ranks: Ranks = _SINGLE
    peer_monitor: PeerMonitor | None = None

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self.ranks.rank

    @property
    def size(self) -> int:
        """The number of processes."""
        return self.ranks.size

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, of rank 0, which writes files and logs."""
        return self.rank == 0

    @property
    def reduce(self) -> Callable[[Tensors], None] | None:
        """``all_reduce``; None for a single process."""
        return self.all_reduce if self.size > 1 else None

    def share(self, number: int) -> slice:
        """Return the share of this process of ``number`` blocks."""
        return share(number, self.rank, self.size)

    def check(self) -> None:
        """Raise ``PeerLostError`` if another process has ended early."""
        if self.peer_monitor is not None:
            self.peer_monitor.check()

    def report_failure(self, status: int, message: str) -> None:
        """Send the main process the reason why this process ends early."""
        if self.peer_monitor is not None:
            self.peer_monitor.report_failure(status, f"process {self.rank} of {self.size}: {message}")

    @torch.no_grad()
    def all_reduce(self, tensors: Tensors) -> None:
        """Add each tensor up over all processes, in place: the same bits for all of them, and from run to run.

        Tensors travel in a few large buckets, which overlap with each other.
        """
        if self.size == 1:
            return
        with self._peer_errors():
            buckets = [(bucket, flatten(bucket)) for bucket in _buckets(tensors)]
            for work in [dist.all_reduce(flat, async_op=True) for _, flat in buckets]:
                work.wait()
        for bucket, flat in buckets:
            copy_(bucket, unflatten(flat, bucket))

    def maximum(self, *numbers: int) -> list[int]:
        """Return the maximum of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers)
        with self._peer_errors():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def gather(self, value: T) -> list[T] | None:
        """Return the values of all processes, in the order of ranks, to the main process; None to the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        with self._peer_errors():
            dist.gather_object(value, values)
        return values

    def broadcast(self, value: T) -> T:
        """Return the value of the main process."""
        if self.size == 1:
            return value
        container = [value]
        with self._peer_errors():
            dist.broadcast_object_list(container, device=torch.device("cpu"))
        return container[0]

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """Let a ``ValueError`` or ``OSError`` of one process end the block in all of them.

        The main process raises it, the others raise ``PeerLostError``.
        """
        problem: ValueError | OSError | None = None
        try:
            yield
        except (ValueError, OSError) as error:
            problem = error
        messages = ["" if problem is None else format_error(problem)] * self.size
        if self.size > 1:
            with self._peer_errors():
                dist.all_gather_object(messages, messages[0])
        if problem is not None and self.is_main:
            raise problem
        rank = next((rank for rank, message in enumerate(messages) if message), None)
        if rank is None:
            return
        message = f"process {rank} of {self.size}: {messages[rank]}"
        raise ValueError(message) if self.is_main else PeerLostError(message, status=2, reported=True)

    @contextmanager
    def _peer_errors(self) -> Iterator[None]:
        self.check()
        try:
            yield
        except RuntimeError as error:
            if self.peer_monitor is None:
                raise
            raise self.peer_monitor.explain(error) from error


ALONE = Group()


@contextmanager
def join_group(
    ranks: Ranks,
    address: str,
    store: "Store",
    *,
    backend: str,
    check: Callable[[], None] = lambda: None,
    status: Callable[[], int] = lambda: 0,
) -> Iterator[Group]:
    """Join the processes of a run, and leave them at the end of the block.

    Args:
        ranks: of this process.
        address: of the process of rank 0.
        store: where the processes of this run, and no others, find each other.
        backend: ``gloo``, or ``nccl`` for CUDA devices.
        check: called while waiting for the others; raises an error when they will not come.
        status: returns the exit status of this process at the end of the block; the others end with the same one.
    """
    if ranks.size == 1:
        yield Group(ranks)
        return
    peer_monitor = connect_peers(
        ranks.rank,
        ranks.size,
        address,
        store.set,
        lambda key: store.get(key).decode(),
        timeout=START_TIMEOUT.total_seconds(),
        check=check,
    )
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if address in LOCAL and loopback is not None:  # gloo resolves the host name, which may be that of another device
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    backends, ended = "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo", 1
    try:
        dist.init_process_group(backends, store=store, rank=ranks.rank, world_size=ranks.size, timeout=NO_TIMEOUT)
        yield Group(ranks, peer_monitor)
        ended = status()
    except KeyboardInterrupt:
        ended = 130
        raise
    finally:
        peer_monitor.close(ended)
        if dist.is_initialized():
            dist.destroy_process_group()


def open_store(address: str, port: int, *, serve: bool) -> "TCPStore":
    """Return the store at an address, served by this process or another; ``PeerLostError`` if there is none."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415 (not in every build)

    try:
        return TCPStore(address, port, is_master=serve, timeout=START_TIMEOUT, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PeerLostError(f"impl.setup.url: cannot reach the main process at {address}:{port} ({reason})") from None


def _buckets(tensors: Tensors) -> Iterator[list[Tensor]]:
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        bucket = kinds[tensor.dtype, tensor.device]
        bucket.append(tensor)
        if sum(entry.numel() for entry in bucket) >= BUCKET:
            yield bucket
            kinds[tensor.dtype, tensor.device] = []
    yield from (bucket for bucket in kinds.values() if bucket)
