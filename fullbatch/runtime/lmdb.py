"""LMDB databases: how they are opened, compared with what is wanted, and reported when they are damaged.

Files of another program and truncated files are refused before LMDB reads them: LMDB would put a lock file beside the
former and end the process (SIGBUS) in the latter. Nothing in a database is ever unpickled.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lmdb

from fullbatch.runtime.manifests import Manifest, differences

_MAGIC = slice(16, 20)  # bytes of a file that identify LMDB
_DAMAGED = (
    *(ValueError, KeyError, lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError),
    *(lmdb.VersionMismatchError, lmdb.NotFoundError, lmdb.IncompatibleError),
)


@dataclass(frozen=True)
class LMDBOptions:
    """How LMDB opens a database.

    Args:
        max_readers: number of processes that may read at the same time.
        readahead: whether the system reads ahead; False is faster in random order where the memory is smaller.
        meminit: whether LMDB zeroes memory before it is written to disk.
        max_spare_txns: number of read transactions that are kept for reuse.
        map_size: bytes that the database may grow to; not used for reading.
        access: how records are read: ``get`` looks each one up, ``cursor`` moves from one to the next, which is faster
            where these are neighbors.
    """

    max_readers: int = 128
    readahead: bool = True
    meminit: bool = True
    max_spare_txns: int = 128
    map_size: int = 1_000_000_000
    access: str = "get"


def open_environment(
    folder: Path, options: LMDBOptions, *, max_dbs: int, readonly: bool = False, **flags: bool
) -> lmdb.Environment:
    """Open the database in ``folder``; further ``flags`` are those of ``lmdb.open``.

    Raises:
        ValueError: the file is truncated or of another program.
        lmdb.Error: LMDB refuses it.
    """
    file, settings = folder / "data.mdb", asdict(options)
    del settings["access"]
    if readonly:
        del settings["map_size"]
    if readonly or (file.exists() and file.stat().st_size > 0):  # empty: a process was killed before it wrote anything
        _refuse_foreign(file)
    environment = lmdb.open(str(folder), max_dbs=max_dbs, readonly=readonly, create=not readonly, **settings, **flags)
    try:
        environment.reader_check()  # frees the places of killed readers
        expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        size = file.stat().st_size
        if size < expected and environment.stat()["entries"] > 0:
            raise ValueError(f"{size:,} of {expected:,} bytes")
    except BaseException:
        environment.close()
        raise
    return environment


def _refuse_foreign(file: Path) -> None:
    try:
        with file.open("rb") as content:
            head = content.read(_MAGIC.stop)
    except FileNotFoundError:
        raise ValueError("no file data.mdb") from None
    if int.from_bytes(head[_MAGIC], sys.byteorder) != 0xBEEFC0DE:
        raise ValueError("no LMDB file")


class DatabaseMismatchError(ValueError):
    """A database is intact, but its manifest is not the one wanted."""


@dataclass(frozen=True)
class DatabaseKind:
    """The manifests of one kind of database, and how messages speak about it.

    Args:
        other: what a database with another manifest holds, such as "other images".
        rebuild_key: the setting that replaces a database.
        place_key: the setting that chooses another place.
        version: entries that every manifest has.
        ignored: entries that may differ from those wanted.
    """

    other: str
    rebuild_key: str
    place_key: str
    version: Mapping[str, Any]
    ignored: tuple[str, ...]

    def parse(self, content: bytes) -> Manifest:
        """Return a manifest; ``ValueError`` where it is not of this kind and version."""
        manifest = json.loads(content)
        if not isinstance(manifest, dict):
            raise ValueError("its manifest is not of this program")
        for key, value in self.version.items():
            if manifest.get(key) != value:
                raise ValueError(f"its manifest has {key} {manifest.get(key)}; this version reads {key} {value}")
        return manifest

    def require_same(self, folder: Path, stored: Manifest | None, wanted: Manifest) -> None:
        """Raise ``DatabaseMismatchError`` where the database in ``folder`` is not the one wanted."""
        if stored is None:
            raise ValueError("no manifest")
        there, here = ({k: v for k, v in m.items() if k not in self.ignored} for m in (stored, wanted))
        if lines := differences(there, here):
            raise DatabaseMismatchError(
                f"{folder}: holds {self.other} ({'; '.join(lines[:5])}); {self.rebuild_key}=True replaces the "
                f"database, another {self.place_key} keeps both"
            )

    @contextmanager
    def report_errors(self, folder: Path) -> Iterator[None]:
        """Turn errors of LMDB, and ``ValueError`` of damaged content, into an ``OSError`` that names the database."""
        try:
            yield
        except DatabaseMismatchError:
            raise
        except (*_DAMAGED, lmdb.Error) as error:
            reason = str(error).removeprefix(f"{folder}: ")
            if not isinstance(error, _DAMAGED):
                raise OSError(f"{folder}: cannot be used ({reason[:1].lower()}{reason[1:]})") from error
            raise OSError(
                f"{folder}: not an intact database of this program ({reason}); it is left unchanged; "
                f"{self.rebuild_key}=True builds it anew"
            ) from error
