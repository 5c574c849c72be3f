"""Connections on which the processes of a run hear of each other's end, and of each other's wishes.

Collective operations alone would not do: a process whose neighbour has died may compute for an hour before it asks for
the neighbour's sum, and then wait for ever. Here every process holds a connection to that of rank 0, which the system
closes when either of them dies, however it dies. A thread listens. It hands on what it hears to the main thread,
and where that does not come to look, ends the process itself.
"""

import contextlib
import json
import logging
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

LOST = 4
"""Exit status of a run that has lost one of its processes."""
PATIENCE = 10.0
"""Seconds between the end of one process and that of the others, if they are too busy to look up."""
LOCAL = ("127.0.0.1", "localhost")
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a machine without power is found out in 20 s


class PeerLostError(RuntimeError):
    """Another process has ended before its time; ``status`` is how this one is to end."""

    def __init__(self, message: str, status: int = LOST, *, reported: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.reported = reported
        """Whether the process of rank 0 says it."""


class PeerMonitor:
    """This process' end of the connections; see the module's docstring.

    Args:
        rank: of this process.
        size: how many there are.
        connections: rank -> the connection to it: rank 0 has all, the others have that to rank 0.
    """

    def __init__(self, rank: int, size: int, connections: dict[int, socket.socket]) -> None:
        self.rank, self.size = rank, size
        self.asked = 0
        """The number of the last thing that somebody asked for."""
        self._connections, self._heard = connections, dict.fromkeys(connections, b"")
        self._left: set[int] = set()
        self._leaving, self._failed = threading.Event(), threading.Event()
        self._error: PeerLostError | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._listen, name="peer_monitor", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise ``PeerLostError`` if another process has ended before its time."""
        if self._error is not None:
            raise self._error

    def explain(self, error: Exception) -> PeerLostError:
        """Return why a collective operation has failed; the connections tell soon, if another process is gone."""
        self._failed.wait(PATIENCE / 2)
        return self._error or PeerLostError(f"the processes of the run cannot reach each other: {error}")

    def ask(self, number: int) -> None:
        """Tell all the others that something is asked for."""
        self.asked = max(self.asked, number)
        self._send({"ask": number})

    def fail(self, status: int, message: str) -> None:
        """Tell the others that this process ends before its time, and why."""
        self._send({"fail": [status, message]})

    def leave(self, status: int) -> None:
        """Say good-bye and wait until the others have.

        With another status than 0 they end with the same one, if they are not through. The first process does not wait
        for them then: they may be waiting for it in a collective operation.
        """
        self._leaving.set()
        self._send({"bye": status})
        self._thread.join(None if self.rank else 1.0 if status else 6 * PATIENCE)
        for connection in self._connections.values():
            connection.close()

    def _send(self, message: dict[str, Any], but: int | None = None) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            for peer, connection in self._connections.items():
                if peer != but and peer not in self._left:
                    with contextlib.suppress(OSError):  # the listener finds out that a peer is gone
                        connection.sendall(line)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, peer)
            while len(self._left) < len(self._connections):
                for key, _ in selector.select():
                    if not self._hear(key.data):
                        selector.unregister(key.fileobj)
                        self._left.add(key.data)

    def _hear(self, peer: int) -> bool:
        """Read what there is; return whether there may be more."""
        try:
            received = self._connections[peer].recv(1 << 16)
        except OSError:
            received = b""
        *lines, self._heard[peer] = (self._heard[peer] + received).split(b"\n")
        for line in lines:
            if not self._obey(peer, json.loads(line)):
                return False
        if not received:
            self._fail(peer, PeerLostError(f"process {peer} of {self.size} is gone (killed, or its machine is)"))
        return bool(received)

    def _obey(self, peer: int, message: dict[str, Any]) -> bool:
        if "ask" in message:
            self.asked = max(self.asked, message["ask"])
            if self.rank == 0:
                self._send(message, but=peer)
        elif "fail" in message:
            status, text = message["fail"]
            self._fail(peer, PeerLostError(text, status, reported=peer == 0))
        elif message["bye"] and peer == 0:
            self._fail(peer, PeerLostError("the run has ended", message["bye"], reported=True))
        return "ask" in message

    def _fail(self, peer: int, error: PeerLostError) -> None:
        if self._error is not None or self._leaving.is_set():
            return
        self._error = error
        self._failed.set()
        if self.rank == 0:
            self._send({"fail": [error.status, str(error)]}, but=peer)
        threading.Thread(target=self._end, args=(error,), name="end", daemon=True).start()

    def _end(self, error: PeerLostError) -> None:
        """End the process, unless the main thread does: it may wait for ever for the process that is gone."""
        if not self._leaving.wait(PATIENCE):
            if not error.reported:
                log.error("%s", error)
            os._exit(error.status)


def connected(
    rank: int,
    size: int,
    address: str,
    publish: Callable[[str, str], None],
    look_up: Callable[[str], str],
    *,
    timeout: float,
    alive: Callable[[], None] = lambda: None,
) -> PeerMonitor:
    """Connect this process: rank 0 publishes where it listens, the others look that up.

    Args:
        rank: of this process.
        size: how many there are.
        address: of the process of rank 0.
        publish: (name, value) -> None, for the others.
        look_up: name -> value, waits for it.
        timeout: seconds to wait for the others.
        alive: called while waiting; raises an error when the others will not come.
    """
    if rank == 0:
        return PeerMonitor(rank, size, _accepted(size, address, publish, timeout, alive))
    port, token = look_up("peer_monitor").split()
    connection = socket.create_connection((address, int(port)), timeout)
    connection.sendall(json.dumps({"token": token, "rank": rank}).encode() + b"\n")
    return PeerMonitor(rank, size, {0: _kept_alive(connection)})


def _accepted(
    size: int, address: str, publish: Callable[[str, str], None], timeout: float, alive: Callable[[], None]
) -> dict[int, socket.socket]:
    token, deadline = secrets.token_hex(), time.monotonic() + timeout
    connections: dict[int, socket.socket] = {}
    with socket.create_server(("127.0.0.1" if address in LOCAL else "", 0), backlog=size) as server:
        publish("peer_monitor", f"{server.getsockname()[1]} {token}")
        server.settimeout(1.0)
        while len(connections) < size - 1:
            alive()
            if time.monotonic() > deadline:
                missing = sorted(set(range(1, size)) - connections.keys())
                raise PeerLostError(f"processes {missing} of {size} have not come within {timeout:.0f} seconds")
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                connection.settimeout(10.0)
                rank = _introduced(connection, token)
                if rank is None:
                    connection.close()
                else:
                    connections[rank] = _kept_alive(connection)
    return connections


def _introduced(connection: socket.socket, token: str) -> int | None:
    """Return the rank of who has connected, None for a stranger."""
    received = b""
    try:
        while not received.endswith(b"\n") and len(received) < 1000:
            received += connection.recv(1) or b"\n"  # closed: nothing more will come
        said = json.loads(received)
        return int(said["rank"]) if secrets.compare_digest(said["token"], token) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _kept_alive(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
