"""LMDB databases: how they are opened, compared with what is wanted, and reported when they are damaged.

Files of another program and truncated files are refused before LMDB reads them: LMDB would put a lock file beside the
former and end the process (SIGBUS) in the latter. A damaged page can end the process, too, so a database is first read
by another one. Nothing in a database is ever unpickled.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lmdb

from fullbatch.runtime.files import format_bytes
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
        lmdb.MemoryError: the process may not use as much address space; the message says how much.
        lmdb.Error: LMDB refuses it.
    """
    file, settings = folder / "data.mdb", asdict(options)
    del settings["access"]
    if readonly:
        del settings["map_size"]
    if readonly or (file.exists() and file.stat().st_size > 0):  # empty: a process was killed before it wrote anything
        _refuse_foreign(file)
    try:
        create = not readonly
        environment = lmdb.open(str(folder), max_dbs=max_dbs, readonly=readonly, create=create, **settings, **flags)
    except lmdb.MemoryError as error:
        size = file.stat().st_size if readonly else options.map_size
        raise lmdb.MemoryError(f"needs {format_bytes(size)} of address space") from error
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


_TRIAL = """
import lmdb, shutil, sys, tempfile
options = dict(max_dbs=len(sys.argv), map_size=int(sys.argv[2]))
with tempfile.TemporaryDirectory() as folder:
    with lmdb.open(sys.argv[1], create=False, **options) as environment, environment.begin(write=True):
        shutil.copy(sys.argv[1] + "/data.mdb", folder)  # no other process writes now
    with lmdb.open(folder, sync=False, **options) as copied:
        tables = [copied.open_db(name.encode(), create=False) for name in sys.argv[3:]]
    for number in range(8):
        try:
            with lmdb.open(folder, sync=False, **options) as copied:
                for name in sys.argv[3:]:
                    table = copied.open_db(name.encode(), create=False)
                    with copied.begin(write=True) as transaction:
                        for key, value in [*transaction.cursor(db=table), (b"key %d" % number, bytes(100))]:
                            transaction.put(key, bytes([number] * len(value)), db=table)
        except lmdb.Error:
            sys.exit(3)
"""


def require_usable(folder: Path, map_size: int, tables: Sequence[bytes]) -> None:
    """Raise ``ValueError`` where LMDB ends the process that reads and changes these tables, or loses them.

    That happens in some damaged files. So another process does it first, in a copy of the file.
    """
    names = [table.decode() for table in tables]
    command = [sys.executable, "-I", "-c", _TRIAL, str(folder), str(map_size), *names]
    status = subprocess.run(command, capture_output=True, check=False).returncode
    if status not in (0, 1):  # 1: what is wrong is found again where the database is opened
        raise ValueError("its pages are damaged")


def _refuse_foreign(file: Path) -> None:
    try:
        with file.open("rb") as content:
            head = content.read(_MAGIC.stop)
    except FileNotFoundError:
        raise ValueError("no file data.mdb") from None
    if int.from_bytes(head[_MAGIC], sys.byteorder) != 0xBEEFC0DE:
        raise ValueError("no LMDB file")


def digest(environment: lmdb.Environment, table: bytes, poll: Callable[[], None] = lambda: None) -> str:
    """Return BLAKE2b over all keys and values of a table in the order of the keys: equal for equal records.

    ``poll`` is called for each record.
    """
    state = hashlib.blake2b(digest_size=16)
    with environment.begin(buffers=True) as transaction:
        for _ in transaction.cursor():  # the records of the database itself
            pass
    try:
        opened = environment.open_db(table, create=False)
    except lmdb.NotFoundError:  # a build was killed before it wrote any
        return state.hexdigest()
    with environment.begin(buffers=True, db=opened) as transaction:
        for key, value in transaction.cursor():
            poll()
            state.update(key)
            state.update(value)
    return state.hexdigest()


_IN_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from fullbatch.runtime.lmdb import print_digest; print_digest(*sys.argv[2:])"
)


def digest_in_child(folder: Path, table: bytes, poll: Callable[[], None]) -> str:
    """Return the digest of a table, computed by another process, which a damaged page may end.

    Args:
        folder: of the database.
        table: name of the table.
        poll: called twice per second; where it raises an error, the process is ended.

    Raises:
        ValueError: the database is damaged.
        lmdb.Error: LMDB refuses it.
    """
    places = json.dumps([str(Path(__file__).parents[2]), *sys.path])
    command = [sys.executable, "-I", "-S", "-c", _IN_CHILD, places, str(folder), table.decode()]
    command += ["lock"] if os.access(folder, os.W_OK) else []  # LMDB's list of readers needs write access
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            while True:
                poll()
                try:
                    output, errors = process.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        by = f"signal {-process.returncode}" if process.returncode < 0 else last[0]
        raise ValueError(f"reading it ended a process: {by}")
    kind, result = json.loads(output)
    if kind:
        raise {"OSError": OSError, "ValueError": ValueError}.get(kind, getattr(lmdb, kind, ValueError))(result)
    return str(result)


def print_digest(folder: str, table: str, lock: str = "") -> None:
    """Print the result of ``digest`` or the error: the other process of ``digest_in_child``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    parent = os.getppid()

    def poll() -> None:
        if os.getppid() != parent:
            sys.exit("the process that started this one has ended")

    try:
        with open_environment(Path(folder), LMDBOptions(), max_dbs=1, readonly=True, lock=bool(lock)) as environment:
            result = "", digest(environment, table.encode(), poll)
    except lmdb.Error as error:
        result = type(error).__name__, str(error)
    except (OSError, ValueError) as error:
        result = "OSError" if isinstance(error, OSError) else "ValueError", str(error)
    sys.stdout.write(json.dumps(result))


class DatabaseMismatchError(ValueError):
    """A database is intact, but its manifest is not the one wanted."""


class DamagedDatabaseError(OSError):
    """A database is not intact, or not of this program."""


@dataclass(frozen=True)
class DatabaseKind:
    """The manifests of one kind of database, and how messages speak about it.

    Args:
        other: what a database with another manifest holds, such as "other images".
        rebuild_key: the setting that replaces a database.
        place_key: the setting that chooses another place.
        size_key: the setting that determines how large a database may become.
        version: entries that every manifest has.
        ignored: entries that may differ from those wanted.
    """

    other: str
    rebuild_key: str
    place_key: str
    size_key: str
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
        """Turn errors of LMDB, and ``ValueError`` of damaged content, into an ``OSError`` that names the database.

        Damage becomes a ``DamagedDatabaseError``.
        """
        try:
            yield
        except DatabaseMismatchError:
            raise
        except (*_DAMAGED, lmdb.Error) as error:
            reason = str(error).removeprefix(f"{folder}: ")
            if isinstance(error, lmdb.MemoryError):
                raise OSError(
                    f"{folder}: {reason}, more than this process may use; raise the limit (ulimit -v) or reduce "
                    f"{self.size_key}"
                ) from error
            if not isinstance(error, _DAMAGED):
                raise OSError(f"{folder}: cannot be used ({reason[:1].lower()}{reason[1:]})") from error
            raise DamagedDatabaseError(
                f"{folder}: not an intact database of this program ({reason}); it is left unchanged; "
                f"{self.rebuild_key}=True builds it anew"
            ) from error
