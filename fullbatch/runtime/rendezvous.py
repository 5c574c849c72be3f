"""How the processes of a run find each other, and tell each other from other programs.

Processes of one machine that the first of them has started meet in private: the connections of their peer monitors and
a secret are passed on when they are started, and they find each other through a folder that only this user can read.
Other processes meet at a store of torch.distributed on the network. It is not protected, so the network has to be
private; settings and code never come from there.
"""

import contextlib
import functools
import hmac
import secrets
import selectors
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fullbatch.runtime.peer_monitor import PeerLostError, PeerMonitor
from fullbatch.runtime.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # public, but not listed

LOCAL = ("127.0.0.1", "localhost")
START_TIMEOUT = timedelta(minutes=10)
"""How long processes wait for each other to start."""
NO_TIMEOUT = timedelta(days=365)
"""Processes do not time out: a step may take an hour, and the peer monitor detects when one is gone."""
GREETING_BYTES, GREETING_SECONDS, MAX_CALLERS = 100, 10.0, 100
"""What an unknown caller may send, how long it may take, and how many of them there may be at once."""
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # detects a machine without power in 20 s


class Rendezvous(Protocol):
    """Where the processes of one job meet."""

    @property
    def on_one_machine(self) -> bool:
        """Whether connections beyond this machine are impossible."""
        ...

    def store(self, size: int) -> "Store":
        """Return the store in which ``size`` processes, and no others, find each other."""
        ...

    def connect(self, ranks: Ranks, check: Callable[[], None]) -> tuple[PeerMonitor, bytes]:
        """Connect the peer monitor of this process; return it and the secret of the processes.

        ``check`` is called while waiting and raises an error when the others will not come.
        """
        ...


@dataclass(frozen=True)
class PrivateRendezvous:
    """The rendezvous of processes of one machine; see ``private_rendezvous``.

    Args:
        folder: which only this user can read.
        secret: of the processes.
        connections: rank -> connection; rank 0 has one to each process, the others have one to rank 0.
    """

    folder: str
    secret: bytes
    connections: dict[int, socket.socket]
    on_one_machine = True

    def store(self, size: int) -> "Store":
        """Return a store that is a file."""
        from torch.distributed import FileStore  # type: ignore[attr-defined]  # noqa: PLC0415 (not in every build)

        return FileStore(str(Path(self.folder) / "store"), size)

    def connect(self, ranks: Ranks, check: Callable[[], None]) -> tuple[PeerMonitor, bytes]:
        """Wait until all processes have got here."""
        deadline = time.monotonic() + START_TIMEOUT.total_seconds()
        for peer, connection in self.connections.items() if ranks.rank == 0 else ():
            connection.settimeout(1.0)
            arrived = None
            while not arrived:
                if arrived == b"" or time.monotonic() > deadline:
                    time.sleep(1.0)  # its exit status is known soon
                    check()
                    raise PeerLostError(f"process {peer} of {ranks.size} has not started")
                check()
                with contextlib.suppress(TimeoutError):
                    arrived = connection.recv(1)
            connection.settimeout(None)
        if ranks.rank > 0:
            with contextlib.suppress(OSError):  # the peer monitor detects that rank 0 is gone
                self.connections[0].sendall(b"\n")
        return PeerMonitor(ranks.rank, ranks.size, self.connections), self.secret

    def close(self) -> None:
        """Close the connections of this process, after another one has received them."""
        for connection in self.connections.values():
            connection.close()


@contextmanager
def private_rendezvous(size: int) -> Iterator[list[PrivateRendezvous]]:
    """Yield the rendezvous of each of ``size`` processes, in the order of ranks; for the first of them."""
    secret = secrets.token_bytes()
    pairs = {rank: socket.socketpair() for rank in range(1, size)}
    with tempfile.TemporaryDirectory(prefix="fullbatch-") as folder:
        first = PrivateRendezvous(folder, secret, {rank: pair[0] for rank, pair in pairs.items()})
        others = [PrivateRendezvous(folder, secret, {0: pair[1]}) for pair in pairs.values()]
        try:
            yield [first, *others]
        finally:
            for rendezvous in (first, *others):
                rendezvous.close()


@dataclass(frozen=True)
class NetworkRendezvous:
    """The rendezvous of processes that other programs have started, or other machines.

    Args:
        address: of the process of rank 0.
        port: of the store.
        job: the name of the job in the store.
        serve: whether this process serves the store.
    """

    address: str
    port: int
    job: str
    serve: bool = False

    @property
    def on_one_machine(self) -> bool:
        """Whether the address is that of this machine for itself."""
        return self.address in LOCAL

    def store(self, size: int = 0) -> "Store":
        """Return the part of the store that belongs to the job."""
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # noqa: PLC0415 (not in every build)

        return PrefixStore(self.job, open_store(self.address, self.port, serve=self.serve))

    def connect(self, ranks: Ranks, check: Callable[[], None]) -> tuple[PeerMonitor, bytes]:
        """Connect to the process of rank 0 through a port that it publishes in the store, with a secret."""
        store = self.store()
        if ranks.rank == 0:
            secret = secrets.token_hex()
            with socket.create_server(("127.0.0.1" if self.on_one_machine else "", 0), backlog=ranks.size) as server:
                store.set("peer_monitor", f"{server.getsockname()[1]} {secret}")
                connections = accept_peers(ranks.size, secret, server, START_TIMEOUT.total_seconds(), check)
        else:
            port, secret = look_up(store, "peer_monitor", NO_TIMEOUT).split()  # rank 0 may be busy with the last job
            try:
                connection = socket.create_connection((self.address, int(port)), START_TIMEOUT.total_seconds())
                connection.sendall(f"{secret} {ranks.rank}\n".encode())
            except OSError as error:
                raise PeerLostError(f"process 0 of {ranks.size} does not answer at {self.address}: {error}") from None
            connections = {0: _keep_alive(connection)}
        return PeerMonitor(ranks.rank, ranks.size, connections), secret.encode()


def look_up(store: "Store", key: str, timeout: timedelta = START_TIMEOUT) -> str:
    """Wait until a process has set a key, and return its value; ``PeerLostError`` where none does."""
    store.set_timeout(timeout)
    try:
        return str(store.get(key).decode())
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise PeerLostError(f"impl.setup: the other processes have ended, or did not start ({reason})") from None


@functools.cache  # a process serves its store as long as it lives
def open_store(address: str, port: int, *, serve: bool) -> "TCPStore":
    """Return the store at an address, served by this process or another; ``PeerLostError`` if there is none."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415 (not in every build)

    try:
        local = socket.create_server(("127.0.0.1", port)).detach() if serve and address in LOCAL else None
        return TCPStore(
            address, port, is_master=serve, timeout=START_TIMEOUT, wait_for_workers=False, master_listen_fd=local
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise PeerLostError(f"impl.setup.url: cannot reach the main process at {address}:{port} ({reason})") from None


def accept_peers(
    size: int, secret: str, server: socket.socket, timeout: float, check: Callable[[], None]
) -> dict[int, socket.socket]:
    """Return rank -> connection, after each process but rank 0 has sent the secret and its rank.

    Other callers are refused. They cannot delay the processes of the run, nor send more than ``GREETING_BYTES``.
    """
    deadline = time.monotonic() + timeout
    peers: dict[int, socket.socket] = {}
    callers: dict[socket.socket, tuple[bytes, float]] = {}  # what they have sent, and when they are refused
    server.setblocking(False)
    while len(peers) < size - 1:
        check()
        if time.monotonic() > deadline:
            missing = sorted(set(range(1, size)) - peers.keys())
            raise PeerLostError(f"processes {missing} of {size} have not connected within {timeout:.0f} seconds")
        ready = _readable([server, *callers], 1.0)
        for caller in ready & callers.keys():
            received, until = callers.pop(caller)
            greeting, complete = _read_greeting(caller, received)
            rank = _rank_in(greeting, secret, size) if complete else None
            if rank is not None and rank not in peers:
                peers[rank] = _keep_alive(caller)
            elif complete:
                caller.close()
            else:
                callers[caller] = greeting, until
        if server in ready:
            with contextlib.suppress(OSError):  # the caller is gone already
                callers[server.accept()[0]] = b"", time.monotonic() + GREETING_SECONDS
        by_age = sorted(callers, key=lambda caller: callers[caller][1])
        for number, caller in enumerate(by_age):
            if time.monotonic() > callers[caller][1] or number < len(by_age) - size - MAX_CALLERS:
                del callers[caller]
                caller.close()
    for caller in callers:
        caller.close()
    return peers


def _readable(connections: Sequence[socket.socket], seconds: float) -> set[socket.socket]:
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ, connection)
        return {key.data for key, _ in selector.select(seconds)}


def _read_greeting(caller: socket.socket, greeting: bytes) -> tuple[bytes, bool]:
    """Return the greeting so far, and whether it is complete; what follows it belongs to the peer monitor."""
    caller.setblocking(False)
    while not greeting.endswith(b"\n") and len(greeting) < GREETING_BYTES:
        try:
            byte = caller.recv(1)
        except BlockingIOError:
            return greeting, False
        except OSError:
            return greeting, True
        if not byte:
            break
        greeting += byte
    return greeting, True


def _rank_in(greeting: bytes, secret: str, size: int) -> int | None:
    """Return the rank in a greeting; None for that of another program."""
    given, _, number = greeting.removesuffix(b"\n").partition(b" ")
    if not hmac.compare_digest(given, secret.encode()) or not number.isdigit():
        return None
    rank = int(number)
    return rank if 0 < rank < size else None


def _keep_alive(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
