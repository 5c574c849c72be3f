"""The processes that share a run, and what they do together: sums, agreements, announcements."""

import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fullbatch.runtime.files import format_error
from fullbatch.runtime.peer_monitor import LOCAL, PeerLostError, PeerMonitor, connected
from fullbatch.runtime.ranks import Ranks, share
from fullbatch.tensors import copy_, flatten, unflatten
from fullbatch.typing import Tensors

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # public, but not listed

T = TypeVar("T")
BUCKET = 1 << 24
"""Entries that are reduced at once: large enough for the network, small beside the gradients themselves."""
MISTAKE = 2
START = timedelta(minutes=10)
"""How long processes wait for each other to come."""
FOR_EVER = timedelta(days=365)
"""Nobody times the others out: a step may take an hour, and lifelines tell when a process is gone."""


ONE = Ranks(0, 1)


@dataclass
class Ending:
    """How a process' part in a run ends."""

    status: int = 0


@dataclass(frozen=True)
class Group:
    """The processes of a run, seen from one of them; without arguments, a process alone.

    All methods but ``check`` are collective: every process calls them, in the same order. They raise
    ``PeerLostError`` when another process has ended early.
    """

    ranks: Ranks = ONE
    peer_monitor: PeerMonitor | None = None
    ending: Ending = field(default_factory=Ending)

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.ranks.rank

    @property
    def size(self) -> int:
        """The number of processes."""
        return self.ranks.size

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    @property
    def reduce(self) -> Callable[[Tensors], None] | None:
        """``all_reduce``, None where there is nothing to add up."""
        return self.all_reduce if self.size > 1 else None

    def share(self, number: int) -> slice:
        """Return which of ``number`` blocks fall to this process."""
        return share(number, self.rank, self.size)

    def check(self) -> None:
        """Raise ``PeerLostError`` if a process has ended before its time."""
        if self.peer_monitor is not None:
            self.peer_monitor.check()

    @torch.no_grad()
    def all_reduce(self, tensors: Tensors) -> None:
        """Add each tensor up over all processes, in place: the same bits for all, and from run to run.

        Tensors travel in a few large buckets, which overlap with each other.
        """
        if self.size == 1:
            return
        with self._explained():
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
        with self._explained():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def gather(self, value: T) -> list[T] | None:
        """Return what each process has, in the order of ranks, to the first process; None to the others."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.leads else None
        with self._explained():
            dist.gather_object(value, found)
        return found

    def broadcast(self, value: T) -> T:
        """Return what the first process has."""
        if self.size == 1:
            return value
        container = [value]
        with self._explained():
            dist.broadcast_object_list(container, device=torch.device("cpu"))
        return container[0]

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Let all processes leave the block together: where one raises a ``ValueError`` or ``OSError``, the first does.

        The others then raise ``PeerLostError``.
        """
        problem: ValueError | OSError | None = None
        try:
            yield
        except (ValueError, OSError) as error:
            problem = error
        if problem is not None and (self.leads or self.size == 1):
            self._all(_text(problem))
            raise problem
        texts = self._all(None if problem is None else _text(problem))
        if not any(texts):
            return
        rank = next(rank for rank, text in enumerate(texts) if text)
        message = f"process {rank} of {self.size}: {texts[rank]}"
        raise ValueError(message) if self.leads else PeerLostError(message, MISTAKE, reported=True)

    def _all(self, value: Any) -> list[Any]:
        found: list[Any] = [value] * self.size
        if self.size > 1:
            with self._explained():
                dist.all_gather_object(found, value)
        return found

    @contextmanager
    def _explained(self) -> Iterator[None]:
        self.check()
        try:
            yield
        except RuntimeError as error:
            if self.peer_monitor is None:
                raise
            raise self.peer_monitor.explain(error) from error


ALONE = Group()


@contextmanager
def joined(
    ranks: Ranks,
    address: str,
    store: "Store",
    *,
    backend: str,
    alive: Callable[[], None] = lambda: None,
) -> Iterator[Group]:
    """Join the processes of a run, and leave them in the end, with the status that is their ``ending``.

    Args:
        ranks: of this process.
        address: of the process of rank 0.
        store: where processes find each other; of this run alone.
        backend: ``gloo``, or ``nccl`` for CUDA devices.
        alive: called while waiting for them; raises an error when they will not come.
    """
    if ranks.size == 1:
        yield Group(ranks)
        return
    peer_monitor = connected(
        ranks.rank,
        ranks.size,
        address,
        store.set,
        lambda key: store.get(key).decode(),
        timeout=START.total_seconds(),
        alive=alive,
    )
    if address in LOCAL:
        _stay_on_this_machine()
    both = "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo"
    group = Group(ranks, peer_monitor)
    try:
        dist.init_process_group(both, store=store, rank=ranks.rank, world_size=ranks.size, timeout=FOR_EVER)
        yield group
    except BaseException as error:
        group.ending.status = 130 if isinstance(error, KeyboardInterrupt) else group.ending.status or 1
        raise
    finally:
        peer_monitor.leave(group.ending.status)
        if dist.is_initialized():
            dist.destroy_process_group()


def open_store(address: str, port: int, *, serve: bool) -> "TCPStore":
    """Return the store at an address, which this process serves or somebody else; ``PeerLostError`` if nobody does."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415 (not in every build)

    try:
        return TCPStore(address, port, is_master=serve, timeout=START, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PeerLostError(
            f"impl.setup.url: nothing to meet the other processes at {address}:{port} ({reason})"
        ) from None


def _stay_on_this_machine() -> None:
    """Let gloo use the loopback device: host names lead elsewhere, or nowhere, on many machines."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _buckets(tensors: Tensors) -> Iterator[list[Tensor]]:
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        bucket = kinds[tensor.dtype, tensor.device]
        bucket.append(tensor)
        if sum(entry.numel() for entry in bucket) >= BUCKET:
            yield bucket
            kinds[tensor.dtype, tensor.device] = []
    yield from (bucket for bucket in kinds.values() if bucket)


def _text(problem: ValueError | OSError) -> str:
    return format_error(problem) if isinstance(problem, OSError) else str(problem)
