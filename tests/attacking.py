"""Another user of the machine, who sends whatever may do harm to ports; it reads them from its input.

The superuser becomes nobody; others attack their own processes.
"""

import contextlib
import os
import socket
import struct
import sys
import tempfile
import threading
from pathlib import Path

NOBODY = 65534
ATTACKS = [
    b"[" * 998 + b"\n",
    b"[" * 200_000,
    b'{"failure": [0, "x"]}\n{"close": 0}\n{"request": 1e30}\n',
    b'{"token": "0", "rank": 1}\n',
    b"GET / HTTP/1.1\r\n\r\n",
    os.urandom(100_000),
    b"\0" * 100_000,
    *(struct.pack("<q", number) + b"\0" * 1000 for number in range(-2, 9)),
    b"",
]


def attack(port: int) -> None:
    kept = []
    for content in ATTACKS:
        with contextlib.suppress(OSError):
            connection = socket.socket()
            kept.append(connection)
            connection.settimeout(0.5)
            connection.connect(("127.0.0.1", port))
            connection.sendall(content)
    for folder in Path(tempfile.gettempdir()).glob("fullbatch-*") if os.getuid() == NOBODY else ():
        with contextlib.suppress(OSError):
            (folder / "store").write_bytes(b"x" * 1000)
            sys.stdout.write(f"wrote into {folder}\n")
            sys.stdout.flush()
    threading.Event().wait()  # keep the connections


if __name__ == "__main__":
    tempfile.gettempdir()
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    for line in sys.stdin:
        threading.Thread(target=attack, args=(int(line),), daemon=True).start()
