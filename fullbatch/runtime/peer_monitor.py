"""Connections through which the processes of a run learn that one of them has ended, and receive each other's requests.

Collective operations are not enough: a process whose peer has died may compute for an hour before its next all-reduce,
and then wait forever. So each process keeps a connection to that of rank 0, which the operating system closes when
either of them dies, for whatever reason. A thread listens. It passes messages on to the main thread, and ends the
process if the main thread does not react to the loss of a peer.
"""

import contextlib
import json
import logging
import os
import selectors
import socket
import threading
from typing import Any

log = logging.getLogger(__name__)

LOST = 4
"""Exit status of a run that has lost one of its processes."""
GRACE_SECONDS = 10.0
"""Seconds after the end of one process in which the others end by themselves."""
MAX_TEXT = 20_000
"""Characters of the message of a failure, which may be a stack trace."""
MAX_MESSAGE_BYTES = 200_000
"""Longer messages are refused."""


class PeerLostError(RuntimeError):
    """Another process has ended early.

    Args:
        message: what happened.
        status: the exit status with which this process should end.
        reported: whether the main process logs the message.
    """

    def __init__(self, message: str, status: int = LOST, *, reported: bool = False) -> None:
        super().__init__(message)
        self.status, self.reported = status, reported


class PeerMonitor:
    """This process' connections; see the module's docstring.

    Args:
        rank: of this process.
        size: the number of processes.
        connections: rank -> connection. Rank 0 has one to each process, the others have one to rank 0.
    """

    def __init__(self, rank: int, size: int, connections: dict[int, socket.socket]) -> None:
        self.rank, self.size = rank, size
        self.requested = 0
        """The number of the latest request of any process."""
        self._connections, self._buffers = connections, dict.fromkeys(connections, b"")
        self._closed_peers: set[int] = set()
        self._closing, self._failed = threading.Event(), threading.Event()
        self._error: PeerLostError | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._listen, name="peer_monitor", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise ``PeerLostError`` if another process has ended early."""
        if self._error is not None:
            raise self._error

    def explain(self, error: Exception) -> PeerLostError:
        """Return the cause of a failed collective operation; a lost peer is detected within seconds."""
        self._failed.wait(GRACE_SECONDS / 2)
        reason = str(error).partition("\n")[0]
        return self._error or PeerLostError(f"the processes of the run cannot reach each other: {reason}")

    def request(self, number: int) -> None:
        """Send the number of a request to all processes."""
        self.requested = max(self.requested, number)
        self._send({"request": number})

    def report_failure(self, status: int, message: str) -> None:
        """Send the reason why this process ends early."""
        self._send({"failure": [status, message[:MAX_TEXT]]})

    def close(self, status: int) -> None:
        """Announce the end of this process and wait for the others.

        If ``status`` is not 0, the others end with it, too, unless they are done. Rank 0 does not wait for them then:
        they may be waiting for it in a collective operation.
        """
        self._closing.set()
        self._send({"close": status})
        self._thread.join(None if self.rank else 1.0 if status else 6 * GRACE_SECONDS)
        for connection in self._connections.values():
            with contextlib.suppress(OSError):  # the other end is gone
                connection.shutdown(socket.SHUT_RDWR)  # also for loader processes, which have inherited it
            connection.close()

    def _send(self, message: dict[str, Any], exclude: int | None = None) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            for peer, connection in self._connections.items():
                if peer != exclude and peer not in self._closed_peers:
                    with contextlib.suppress(OSError):  # the listening thread detects that a peer is gone
                        connection.sendall(line)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, peer)
            while len(self._closed_peers) < len(self._connections):
                for key, _ in selector.select():
                    if not self._receive(key.data):
                        selector.unregister(key.fileobj)
                        self._closed_peers.add(key.data)

    def _receive(self, peer: int) -> bool:
        """Read and handle the messages of a peer; return whether there may be more."""
        try:
            received = self._connections[peer].recv(1 << 16)
        except OSError:
            received = b""
        *lines, self._buffers[peer] = (self._buffers[peer] + received).split(b"\n")
        if len(self._buffers[peer]) > MAX_MESSAGE_BYTES:
            lines.append(self._buffers[peer])
        for line in lines:
            message = _read_message(line)
            if message is None:
                self._fail(peer, PeerLostError(f"process {peer} of {self.size} sent an invalid message"))
                return False
            if not self._handle(peer, *message):
                return False
        if not received:
            self._fail(peer, PeerLostError(f"process {peer} of {self.size} is gone: it or its machine was killed"))
        return bool(received)

    def _handle(self, peer: int, kind: str, number: int, text: str) -> bool:
        """Act on a message; return whether there may be more."""
        if kind == "request":
            self.requested = max(self.requested, number)
            if self.rank == 0:
                self._send({"request": number}, exclude=peer)
        elif kind == "failure":
            self._fail(peer, PeerLostError(text, number, reported=peer == 0))
        elif number and peer == 0:
            self._fail(peer, PeerLostError("the run has ended", number, reported=True))
        return kind == "request"

    def _fail(self, peer: int, error: PeerLostError) -> None:
        if self._error is not None or self._closing.is_set():
            return
        self._error = error
        self._failed.set()
        if self.rank == 0:
            self._send({"failure": [error.status, str(error)[:MAX_TEXT]]}, exclude=peer)
        threading.Thread(target=self._exit_later, args=(error,), name="exit", daemon=True).start()

    def _exit_later(self, error: PeerLostError) -> None:
        """End the process unless the main thread does, which may wait forever for the lost peer."""
        if not self._closing.wait(GRACE_SECONDS):
            if not error.reported:
                log.error("%s", error)
            os._exit(error.status)


def _read_message(line: bytes) -> tuple[str, int, str] | None:
    """Return the kind of a message, its number and its text; None for anything else than what ``_send`` sends."""
    if len(line) > MAX_MESSAGE_BYTES:
        return None
    try:
        ((kind, content),) = json.loads(line).items()
        number, text = content if kind == "failure" else (content, "")
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    valid = type(number) is int and (kind == "failure") <= number < 1 << 31 and isinstance(text, str)
    return (kind, number, text) if valid and kind in ("request", "failure", "close") else None
