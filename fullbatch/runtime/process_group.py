"""The processes that share a run, and their collective operations."""

import hmac
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from fullbatch.runtime.files import format_error
from fullbatch.runtime.peer_monitor import MAX_TEXT, PeerLostError, PeerMonitor
from fullbatch.runtime.ranks import Ranks, share
from fullbatch.runtime.rendezvous import NO_TIMEOUT, Rendezvous
from fullbatch.tensors import copy_, flatten, unflatten
from fullbatch.typing import Tensors

BUCKET = 1 << 24
"""Entries that are reduced at once: large enough for the network, small beside the gradients themselves."""
MAX_BYTES = 1 << 38
"""What one process sends to another at most, as a checkpoint."""
PROOF_TIMEOUT = timedelta(seconds=30)
"""How long processes that are connected wait for each other's proof that they are."""

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

    def gather(self, content: bytes) -> list[bytes] | None:
        """Return the bytes of all processes, in the order of ranks, to the main process; None to the others."""
        if self.size == 1:
            return [content]
        with self._peer_errors():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(content)]))
            if not self.is_main:
                for chunk in _chunks(bytearray(content)):
                    dist.send(chunk, 0)
                return None
            contents = [content]
            for rank in range(1, self.size):
                buffer = _buffer(int(lengths[rank]))
                for chunk in _chunks(buffer):
                    dist.recv(chunk, rank)
                contents.append(bytes(buffer))
        return contents

    def broadcast(self, content: bytes) -> bytes:
        """Return the bytes of the main process."""
        if self.size == 1:
            return content
        with self._peer_errors():
            length = torch.tensor([len(content)])
            dist.broadcast(length, 0)
            buffer = bytearray(content) if self.is_main else _buffer(int(length))
            for chunk in _chunks(buffer):
                dist.broadcast(chunk, 0)
        return content if self.is_main else bytes(buffer)

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
        messages = self._gather_messages("" if problem is None else format_error(problem) or type(problem).__name__)
        if problem is not None and self.is_main:
            raise problem
        rank = next((rank for rank, message in enumerate(messages) if message), None)
        if rank is None:
            return
        message = f"process {rank} of {self.size}: {messages[rank]}"
        raise ValueError(message) if self.is_main else PeerLostError(message, status=2, reported=True)

    def _gather_messages(self, message: str) -> list[str]:
        """Return the first characters of the messages of all processes, to all of them."""
        if self.size == 1:
            return [message]
        local = torch.zeros(MAX_TEXT, dtype=torch.uint8)
        encoded = message.encode(errors="replace")[:MAX_TEXT]
        local[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
        messages = [torch.empty_like(local) for _ in range(self.size)]
        with self._peer_errors():
            dist.all_gather(messages, local)
        return [bytes(one.tolist()).rstrip(b"\0").decode(errors="replace") for one in messages]

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
    rendezvous: Rendezvous,
    *,
    backend: str,
    check: Callable[[], None] = lambda: None,
    status: Callable[[], int] = lambda: 0,
) -> Iterator[Group]:
    """Join the processes of a run, and leave them at the end of the block.

    Args:
        ranks: of this process.
        rendezvous: where the processes of this run, and no others, find each other.
        backend: ``gloo``, or ``nccl`` for CUDA devices.
        check: called while waiting for the others; raises an error when they will not come.
        status: returns the exit status of this process at the end of the block; the others end with the same one.
    """
    if ranks.size == 1:
        yield Group(ranks)
        return
    peer_monitor, secret = rendezvous.connect(ranks, check)
    if rendezvous.on_one_machine:  # whatever the environment says: the host name may be that of another device
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ.update(GLOO_SOCKET_IFNAME=loopback, NCCL_SOCKET_IFNAME=f"={loopback}")
    backends, ended = "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo", 1
    try:
        store = rendezvous.store(ranks.size)
        try:
            dist.init_process_group(backends, store=store, rank=ranks.rank, world_size=ranks.size, timeout=NO_TIMEOUT)
            _exchange_proofs(ranks, secret)
        except PeerLostError:
            raise
        except RuntimeError as error:
            raise peer_monitor.explain(error) from error
        yield Group(ranks, peer_monitor)
        ended = status()
    except KeyboardInterrupt:
        ended = 130
        raise
    finally:
        peer_monitor.close(ended)
        if dist.is_initialized():
            dist.destroy_process_group()


def _exchange_proofs(ranks: Ranks, secret: bytes) -> None:
    """Prove to each process that this one has the secret of the run.

    The ports of gloo accept anyone. Another program that has connected before a process of the run cannot do this.
    """

    def proof(sender: int, receiver: int) -> Tensor:
        digest = hmac.digest(secret, f"{sender} to {receiver}".encode(), "sha256")
        return torch.frombuffer(bytearray(digest), dtype=torch.uint8)

    peers = [peer for peer in range(ranks.size) if peer != ranks.rank]
    received = {peer: torch.zeros(32, dtype=torch.uint8) for peer in peers}
    sent = [proof(ranks.rank, peer) for peer in peers]
    transfers = [dist.isend(one, peer) for one, peer in zip(sent, peers, strict=True)]
    transfers += [dist.irecv(one, peer) for peer, one in received.items()]
    for transfer in transfers:
        if transfer is not None:
            transfer.wait(PROOF_TIMEOUT)
    if not all(torch.equal(one, proof(peer, ranks.rank)) for peer, one in received.items()):
        raise PeerLostError("another program has connected to a port of this run")


def _buckets(tensors: Tensors) -> Iterator[list[Tensor]]:
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        bucket = kinds[tensor.dtype, tensor.device]
        bucket.append(tensor)
        if sum(entry.numel() for entry in bucket) >= BUCKET:
            yield bucket
            kinds[tensor.dtype, tensor.device] = []
    yield from (bucket for bucket in kinds.values() if bucket)


def _buffer(length: int) -> bytearray:
    """Return an empty buffer; ``PeerLostError`` for a length that no checkpoint has."""
    if not 0 <= length <= MAX_BYTES:
        raise PeerLostError(f"another process announces {length:,} bytes; at most {MAX_BYTES:,} are accepted")
    return bytearray(length)


def _chunks(content: bytearray) -> Sequence[Tensor]:
    """Return views of the bytes, small enough for one transfer each."""
    return torch.frombuffer(content, dtype=torch.uint8).split(BUCKET) if content else ()
