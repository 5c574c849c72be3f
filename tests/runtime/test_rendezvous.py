"""Who may join the processes of a run, and what other programs can do; processes are threads here."""

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fullbatch.runtime import rendezvous as module
from fullbatch.runtime.peer_monitor import PeerLostError
from fullbatch.runtime.ranks import Ranks
from fullbatch.runtime.rendezvous import accept_peers, open_store, private_rendezvous

SECRET = "0123456789abcdef" * 4
REFUSED = {
    "another secret": f"{SECRET[:-1]}0 1\n",
    "no secret": " 1\n",
    "a page": "GET / HTTP/1.1\n",
    "nothing": "",
    "nested": "[" * 998,
    "oversized": "x" * 1_000_000,
    "oversized secret": SECRET * 1000 + "\n",
    "rank 0": f"{SECRET} 0\n",
    "rank 77": f"{SECRET} 77\n",
    "no rank": f"{SECRET} \n",
    "a negative rank": f"{SECRET} -1\n",
    "digits of another script": f"{SECRET} \u0661\n",
}


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server


def call(server: socket.socket, greeting: str) -> socket.socket:
    connection = socket.create_connection(server.getsockname(), 60)
    with contextlib.suppress(OSError):  # refused already
        connection.sendall(greeting.encode())
    return connection


def accepted(server: socket.socket, size: int = 2) -> tuple[threading.Thread, dict[int, socket.socket]]:
    peers: dict[int, socket.socket] = {}
    thread = threading.Thread(target=lambda: peers.update(accept_peers(size, SECRET, server, 60.0, lambda: None)))
    thread.start()
    return thread, peers


def test_other_programs_are_refused_and_delay_nobody(server: socket.socket) -> None:
    """Nor do those that keep silent, or send one byte after the other."""
    start = time.monotonic()
    thread, peers = accepted(server)
    strangers = [call(server, greeting) for greeting in REFUSED.values()]
    silent = [call(server, SECRET[:number]) for number in range(20)]
    friend = call(server, f"{SECRET} 1\n{{")
    thread.join(60)
    assert time.monotonic() - start < 5.0
    assert list(peers) == [1]
    assert peers[1].recv(10) == b"{"  # which belongs to the peer monitor
    for connection in (*strangers, *silent, friend, peers[1]):
        connection.close()


def test_a_rank_is_taken_once_and_every_process_is_waited_for(server: socket.socket) -> None:
    thread, peers = accepted(server, size=3)
    first, second, third = (call(server, f"{SECRET} {rank}\n") for rank in (1, 1, 2))
    thread.join(60)
    assert sorted(peers) == [1, 2]
    first.sendall(b"x")
    assert peers[1].recv(1) == b"x"
    assert second.recv(1) == b""
    for connection in (first, second, third, *peers.values()):
        connection.close()


def test_many_silent_callers_do_not_keep_others_out(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CALLERS", 5)
    thread, peers = accepted(server)
    silent = [call(server, "") for _ in range(50)]
    friend = call(server, f"{SECRET} 1\n")
    thread.join(60)
    assert list(peers) == [1]
    for connection in (*silent, friend, *peers.values()):
        connection.close()


def test_missing_processes_are_named_on_time(server: socket.socket) -> None:
    slow = call(server, "x")
    with pytest.raises(PeerLostError, match=r"processes \[1, 2\] of 3 have not connected"):
        accept_peers(3, SECRET, server, 0.0, lambda: None)
    slow.close()


def test_a_private_rendezvous_is_private() -> None:
    with private_rendezvous(3) as (first, *others):
        folder = Path(first.folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == os.getuid()
        assert {rendezvous.secret for rendezvous in others} == {first.secret}
        assert len(first.secret) >= 32
        families = {c.family for rendezvous in (first, *others) for c in rendezvous.connections.values()}
        assert families == {socket.AF_UNIX}
    assert not folder.exists()


def test_a_process_that_ends_while_starting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with private_rendezvous(2) as (first, second):
        second.close()
        with pytest.raises(PeerLostError, match="process 1 of 2 has not started"):
            first.connect(Ranks(0, 2), lambda: None)


def test_a_store_for_this_machine_is_served_on_loopback() -> None:
    store = open_store("127.0.0.1", 0, serve=True)
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    assert f" 0100007F:{store.port:04X} 00000000:0000 0A" in listening
    assert f" {32 * '0'}:{store.port:04X} " not in listening
