"""Processes hear of each other's wishes and ends; here they are threads of one process."""

import os
import socket
import threading
import time
from collections.abc import Callable
from queue import Queue

import pytest

from fullbatch.runtime import peer_monitor as module
from fullbatch.runtime.peer_monitor import LOST, PeerLostError, PeerMonitor, connected


@pytest.fixture(autouse=True)
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """With what status processes would have been ended."""
    ended: list[int] = []
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    monkeypatch.setattr(os, "_exit", ended.append)
    return ended


def star(size: int) -> list[PeerMonitor]:
    pairs = {rank: socket.socketpair() for rank in range(1, size)}
    first = PeerMonitor(0, size, {rank: pair[0] for rank, pair in pairs.items()})
    return [first, *(PeerMonitor(rank, size, {0: pair[1]}) for rank, pair in pairs.items())]


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def error_of(line: PeerMonitor) -> PeerLostError:
    def found() -> bool:
        try:
            line.check()
        except PeerLostError:
            return True
        return False

    eventually(found)
    with pytest.raises(PeerLostError) as raised:
        line.check()
    return raised.value


def leave(lines: list[PeerMonitor], status: int = 0) -> None:
    threads = [threading.Thread(target=line.leave, args=(status,)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("speaker", [0, 1])
def test_all_hear_what_one_asks_for(exits: list[int], speaker: int) -> None:
    lines = star(4)
    lines[speaker].ask(7)
    eventually(lambda: all(line.asked == 7 for line in lines))
    for line in lines:
        line.check()
    leave(lines)
    assert exits == []


def test_all_are_told_who_is_gone_and_end_if_they_do_not_look(exits: list[int]) -> None:
    lines = star(3)
    lines[2]._connections[0].shutdown(socket.SHUT_RDWR)  # what the system does for a process that dies
    for line, told in ((lines[0], False), (lines[1], True)):
        error = error_of(line)
        assert (str(error), error.status, error.reported) == (
            "process 2 of 3 is gone (killed, or its machine is)",
            LOST,
            told,
        )
    eventually(lambda: exits.count(LOST) == 3)
    leave(lines, LOST)


def test_who_looks_is_not_ended(exits: list[int]) -> None:
    lines = star(2)
    lines[1].fail(2, "process 1 of 2: no such file")
    error = error_of(lines[0])
    assert (str(error), error.status) == ("process 1 of 2: no such file", 2)
    leave(lines, 2)
    time.sleep(1.0)
    assert exits == []


def test_who_is_not_through_ends_like_the_first(exits: list[int]) -> None:
    lines = star(2)
    leaving = threading.Thread(target=lines[0].leave, args=(3,))
    leaving.start()
    error = error_of(lines[1])
    assert (error.status, error.reported) == (3, True)
    lines[1].leave(3)
    leaving.join(60)
    assert exits == []


def test_strangers_are_not_let_in(exits: list[int]) -> None:
    published: Queue[str] = Queue()
    lines: dict[int, PeerMonitor] = {}

    def join(rank: int, where: str = "") -> None:
        lines[rank] = connected(
            rank, 2, "127.0.0.1", lambda _, value: published.put(value), lambda _: where, timeout=60
        )

    first = threading.Thread(target=join, args=(0,))
    first.start()
    where = published.get(timeout=60)
    port = int(where.split()[0])
    for said in (b'{"token": "0", "rank": 1}\n', b"GET / HTTP/1.1\n", b""):
        with socket.create_connection(("127.0.0.1", port), 60) as stranger:
            stranger.sendall(said)
    join(1, where)
    first.join(60)
    lines[1].ask(1)
    eventually(lambda: lines[0].asked == 1)
    leave([lines[0], lines[1]])
    assert exits == []


def test_who_does_not_come_is_named() -> None:
    with pytest.raises(PeerLostError, match=r"processes \[1, 2\] of 3 have not come"):
        connected(0, 3, "127.0.0.1", lambda _, __: None, lambda _: "", timeout=0.0)
