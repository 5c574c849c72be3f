"""Proofs of the secret, between processes that are threads here, with transfers in memory."""

import threading
from queue import Queue
from typing import Any

import pytest
from torch import Tensor

from fullbatch.runtime import process_group as module
from fullbatch.runtime.peer_monitor import PeerLostError
from fullbatch.runtime.ranks import Ranks


class Transfers:
    """``torch.distributed.isend`` and ``irecv`` of one process of several."""

    def __init__(self, rank: int, queues: dict[tuple[int, int], "Queue[Tensor]"]) -> None:
        self.rank, self.queues = rank, queues

    def isend(self, tensor: Tensor, peer: int) -> None:
        self.queues[self.rank, peer].put(tensor.clone())

    def irecv(self, tensor: Tensor, peer: int) -> Any:
        queue = self.queues[peer, self.rank]
        return type("Work", (), {"wait": lambda _, timeout: tensor.copy_(queue.get(timeout=60))})()


def proofs(monkeypatch: pytest.MonkeyPatch, secrets: list[bytes]) -> list[bool]:
    """Return which processes accept the others."""
    size = len(secrets)
    queues: dict[tuple[int, int], Queue[Tensor]] = {(a, b): Queue() for a in range(size) for b in range(size)}
    local, accepted = threading.local(), [True] * size
    for name in ("isend", "irecv"):
        monkeypatch.setattr(module.dist, name, lambda *arguments, name=name: getattr(local.transfers, name)(*arguments))

    def run(rank: int) -> None:
        local.transfers = Transfers(rank, queues)
        try:
            module._exchange_proofs(Ranks(rank, size), secrets[rank])
        except PeerLostError:
            accepted[rank] = False

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return accepted


@pytest.mark.parametrize("size", [2, 3])
def test_processes_with_the_secret_accept_each_other_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    assert proofs(monkeypatch, [b"secret"] * size) == [True] * size
    assert proofs(monkeypatch, [b"secret"] * (size - 1) + [b"another"]) == [False] * size


def test_an_echo_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Tensor] = []
    echo = type("Work", (), {"wait": lambda self, timeout: self.tensor.copy_(sent[0])})

    def irecv(tensor: Tensor, _: int) -> Any:
        work = echo()
        work.tensor = tensor
        return work

    monkeypatch.setattr(module.dist, "isend", lambda tensor, _: sent.append(tensor))
    monkeypatch.setattr(module.dist, "irecv", irecv)
    with pytest.raises(PeerLostError, match="another program has connected to a port of this run"):
        module._exchange_proofs(Ranks(0, 2), b"secret")


def test_no_process_makes_another_allocate_without_bound() -> None:
    with pytest.raises(PeerLostError, match=r"another process announces .* bytes; at most"):
        module._buffer(module.MAX_BYTES + 1)
    with pytest.raises(PeerLostError):
        module._buffer(-1)
