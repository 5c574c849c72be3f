"""Whether a file is a whole one of LMDB, found out without the damage that LMDB itself would do or suffer."""

import sys
from pathlib import Path
from typing import Any

_MAGIC = slice(16, 20)  # where a file of LMDB says that it is one


def refuse_foreign(folder: Path) -> None:
    """Raise ``ValueError`` where the file is none of LMDB, which would find that out only beside a new lock file."""
    try:
        with (folder / "data.mdb").open("rb") as file:
            head = file.read(_MAGIC.stop)
    except FileNotFoundError:
        raise ValueError("no file data.mdb") from None
    if int.from_bytes(head[_MAGIC], sys.byteorder) != 0xBEEFC0DE:
        raise ValueError("no LMDB file")


def refuse_truncated(folder: Path, environment: Any) -> None:
    """Raise ``ValueError`` where pages are missing at the end: reading them would end the process (SIGBUS)."""
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    found = (folder / "data.mdb").stat().st_size
    if found < expected and environment.stat()["entries"] > 0:
        raise ValueError(f"{found:,} of {expected:,} bytes")
