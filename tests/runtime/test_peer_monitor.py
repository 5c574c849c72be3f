"""Processes receive each other's requests and ends; here they are threads of one process."""

import os
import socket
import threading
import time
from collections.abc import Callable

import pytest

from fullbatch.runtime import peer_monitor as module
from fullbatch.runtime.peer_monitor import LOST, PeerLostError, PeerMonitor


@pytest.fixture(autouse=True)
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which processes would have been ended."""
    ended: list[int] = []
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.5)
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


def error_of(monitor: PeerMonitor) -> PeerLostError:
    eventually(lambda: monitor._error)
    with pytest.raises(PeerLostError) as raised:
        monitor.check()
    return raised.value


def close(monitors: list[PeerMonitor], status: int = 0) -> None:
    threads = [threading.Thread(target=monitor.close, args=(status,)) for monitor in monitors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("sender", [0, 1])
def test_a_request_reaches_all(exits: list[int], sender: int) -> None:
    monitors = star(4)
    monitors[sender].request(7)
    eventually(lambda: all(monitor.requested == 7 for monitor in monitors))
    for monitor in monitors:
        monitor.check()
    close(monitors)
    assert exits == []


def test_a_lost_process_is_reported_and_ends_the_others(exits: list[int]) -> None:
    monitors = star(3)
    monitors[2]._connections[0].shutdown(socket.SHUT_RDWR)  # as the system does for a process that dies
    for monitor, reported in ((monitors[0], False), (monitors[1], True)):
        error = error_of(monitor)
        assert (str(error), error.status, error.reported) == (
            "process 2 of 3 is gone: it or its machine was killed",
            LOST,
            reported,
        )
    eventually(lambda: exits.count(LOST) == 3)
    close(monitors, LOST)


def test_a_process_that_checks_is_not_ended(exits: list[int]) -> None:
    monitors = star(2)
    monitors[1].report_failure(2, "process 1 of 2: no such file")
    error = error_of(monitors[0])
    assert (str(error), error.status) == ("process 1 of 2: no such file", 2)
    close(monitors, 2)
    time.sleep(1.0)
    assert exits == []


def test_a_process_that_is_not_done_ends_like_the_first(exits: list[int]) -> None:
    monitors = star(2)
    closing = threading.Thread(target=monitors[0].close, args=(3,))
    closing.start()
    error = error_of(monitors[1])
    assert (error.status, error.reported) == (3, True)
    monitors[1].close(3)
    closing.join(60)
    assert exits == []


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 998,
        b"[" * 150_000,
        b"x" * 300_000,
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"request": true}',
        b'{"request": 1e30}',
        b'{"request": 99999999999}',
        b'{"request": -1}',
        b'{"request": 1, "close": 0}',
        b'{"failure": 2}',
        b'{"failure": [2, 3]}',
        b'{"failure": [0, "done"]}',
        b'{"close": "0"}',
        b'{"other": 1}',
    ],
    ids=lambda line: line[:20].decode(errors="replace"),
)
def test_an_invalid_message_ends_the_run_and_not_the_listener(exits: list[int], line: bytes) -> None:
    monitors = star(4)
    monitors[1]._connections[0].sendall(line + b"\n")
    error = error_of(monitors[0])
    assert (str(error), error.status) == ("process 1 of 4 sent an invalid message", LOST)
    assert error_of(monitors[2]).status == LOST
    monitors[3]._connections[0].sendall(b'{"request": 3}\n')
    eventually(lambda: monitors[0].requested == 3)  # it listens still
    close(monitors, LOST)


def test_a_long_report_of_a_failure_is_a_valid_message(exits: list[int]) -> None:
    monitors = star(2)
    monitors[1].report_failure(1, "\0\u753b" * 1_000_000)
    assert str(error_of(monitors[0])).startswith("\0\u753b")
    close(monitors, 1)
