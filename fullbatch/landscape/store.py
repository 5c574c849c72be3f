"""Surfaces in LMDB databases that many processes of one machine fill together. Nothing in one is ever unpickled.

A process leases a point, computes it, and puts its value; each is one transaction, which a kill leaves undone or done.
A lease ends with its value, when its owner has died, or when it expires: an owner renews it block by block. So every
point is computed, whoever is killed, and at worst twice: the first value stays.
"""

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import numpy as np

from fullbatch.landscape import records
from fullbatch.landscape.grid import Point
from fullbatch.landscape.records import Arrays, Manifest, OtherSurfaceError
from fullbatch.landscape.surface import Value
from fullbatch.runtime.lmdb_checks import refuse_foreign, refuse_truncated

LEASE_SECONDS = 60.0
_MANIFEST = b"manifest"
_TABLES = (b"arrays", b"points", b"leases")
_BYTES_OF_A_POINT = 256  # with its lease and its share of the index, at most
_SLACK = 1 << 20  # bytes of pages that are being replaced
_DAMAGED = (
    *(ValueError, KeyError, lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError),
    *(lmdb.VersionMismatchError, lmdb.NotFoundError, lmdb.IncompatibleError),
)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Access:
    """How LMDB opens a database: its own options, ``map_size`` in bytes."""

    max_readers: int = 128
    readahead: bool = True
    meminit: bool = True
    max_spare_txns: int = 128
    map_size: int = 1_000_000_000


class SurfaceStore:
    """The database of a surface; a context manager that closes it.

    Args:
        folder: of the database, made where it is missing.
        manifest: what it must hold, see ``fullbatch.landscape.records.manifest_of``.
        arrays: what it is to hold where it is new. ``self.arrays`` are those that are there.
        access: how to open it.
        rebuild: replace what is there.
        num_points: how many points it should have room for.
        lease_seconds: after which a lease expires.

    Raises:
        ValueError: it holds another surface, or ``access.map_size`` is too small.
        OSError: it is damaged, of another program, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        arrays: Arrays,
        access: Access | None = None,
        *,
        rebuild: bool = False,
        num_points: int = 0,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.folder, self.owner, self.lease_seconds = folder, records.Owner.here(), lease_seconds
        self._access = access or Access()
        self._require_room(arrays, num_points)
        if rebuild:
            _remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._renewed = 0.0
        with self._told():
            self._lmdb = self._opened()
            try:
                self.arrays = self._transact(lambda t: self._agreed(t, manifest, arrays), write=True)
            except BaseException:
                self._lmdb.close()
                raise

    def __enter__(self) -> "SurfaceStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._lmdb.close()

    def __len__(self) -> int:
        return int(self._transact(lambda t: t.stat(self._tables[b"points"])["entries"]))

    def values(self, points: Sequence[Point]) -> dict[Point, Value]:
        """Return what is computed of these points."""

        def read(transaction: Any) -> dict[Point, Value]:
            table = self._tables[b"points"]
            found = ((point, transaction.get(records.key_of(point), db=table)) for point in points)
            return {point: records.decoded(point, content) for point, content in found if content is not None}

        return self._transact(read)

    def claim(self, pending: "deque[Point]") -> Point | None:
        """Lease the first point that is free; take it, and those found computed, off ``pending``.

        Those that other processes are computing go to the end. Returns None where there is nothing to do now.
        """

        def lease(transaction: Any) -> Point | None:
            now = time.time()
            for _ in range(len(pending)):
                point = pending.popleft()
                key = records.key_of(point)
                if transaction.get(key, db=self._tables[b"points"]) is not None:
                    continue
                if self.owner.may_take(transaction.get(key, db=self._tables[b"leases"]), now):
                    transaction.put(key, self._lease(now), db=self._tables[b"leases"])
                    return point
                pending.append(point)
            return None

        return self._transact(lease, write=True)

    def renew(self, point: Point) -> None:
        """Prolong the lease of a point that is being computed, when a third of it is over."""
        now = time.time()
        if now - self._renewed > self.lease_seconds / 3:
            content, table = self._lease(now), self._tables[b"leases"]
            self._transact(lambda t: t.put(records.key_of(point), content, db=table), write=True)

    def release(self, point: Point) -> None:
        """Give a lease back without a value."""
        self._transact(lambda t: self._drop_own_lease(t, records.key_of(point)), write=True)

    def put(self, point: Point, value: Value) -> None:
        """Write the value of a point, unless it has one, and end the lease."""

        def write(transaction: Any) -> None:
            key = records.key_of(point)
            transaction.put(key, records.encoded(value), overwrite=False, db=self._tables[b"points"])
            self._drop_own_lease(transaction, key)

        self._transact(write, write=True)

    def _lease(self, now: float) -> bytes:
        self._renewed = now
        return self.owner.lease(now + self.lease_seconds)

    def _drop_own_lease(self, transaction: Any, key: bytes) -> None:
        if self.owner.holds(transaction.get(key, db=self._tables[b"leases"])):
            transaction.delete(key, db=self._tables[b"leases"])

    def _agreed(self, transaction: Any, manifest: Manifest, arrays: Arrays) -> dict[str, np.ndarray]:
        """Write manifest and arrays where the database is new, else compare the one and read the others."""
        content = transaction.get(_MANIFEST)
        if content is None and transaction.stat()["entries"] > 0:
            raise ValueError("no manifest")
        new = content is None
        self._tables = {name: self._lmdb.open_db(name, txn=transaction, create=new) for name in _TABLES}
        table = self._tables[b"arrays"]
        if content is None:
            transaction.put(_MANIFEST, json.dumps(manifest, indent=1).encode())
            for name, array in arrays.items():
                transaction.put(name.encode(), records.encoded_array(array), db=table)
            return dict(arrays)
        found = records.parsed(content)
        records.require_equal(self.folder, found, manifest)
        return {
            name: records.decoded_array(name, transaction.get(name.encode(), db=table), described)
            for name, described in found["arrays"].items()
        }

    def _transact(self, work: Callable[[Any], _T], *, write: bool = False) -> _T:
        with self._told():
            try:
                return self._once(work, write)
            except lmdb.MapResizedError:
                self._lmdb.set_mapsize(0)  # another process was given a larger map_size: so much, then
            except lmdb.ReadersFullError:
                self._lmdb.reader_check()  # frees the places of processes that were killed
            return self._once(work, write)

    def _once(self, work: Callable[[Any], _T], write: bool) -> _T:
        with self._lmdb.begin(write=write) as transaction:
            return work(transaction)

    def _opened(self) -> Any:
        file = self.folder / "data.mdb"
        if file.exists() and file.stat().st_size > 0:  # empty: a process was killed before it wrote anything
            refuse_foreign(self.folder)
        # without metasync a crash of the machine may undo the last point; a killed process undoes nothing
        environment = lmdb.open(str(self.folder), max_dbs=len(_TABLES), metasync=False, **asdict(self._access))
        environment.reader_check()
        try:
            refuse_truncated(self.folder, environment)
        except ValueError:
            environment.close()
            raise
        return environment

    def _require_room(self, arrays: Arrays, num_points: int) -> None:
        needed = sum(array.nbytes for array in arrays.values()) + num_points * _BYTES_OF_A_POINT + _SLACK
        if needed > self._access.map_size:
            raise ValueError(
                f"viz.map_size={self._access.map_size:,}: the directions and {num_points:,} points take up to "
                f"{needed:,} bytes; give at least so much"
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Let what LMDB finds wrong be an ``OSError`` that names the database."""
        try:
            yield
        except OtherSurfaceError:
            raise
        except lmdb.MapFullError as error:
            full = f"viz.map_size={self._access.map_size:,} bytes are used up"
            raise OSError(f"{self.folder}: {full}; a larger number continues with what is computed") from error
        except _DAMAGED as error:
            reason = str(error).removeprefix(f"{self.folder}: ")
            raise OSError(
                f"{self.folder}: not a whole database of this program ({reason}); it is left as it is; "
                "viz.rebuild_existing_database=True makes it anew"
            ) from error
        except lmdb.Error as error:
            reason = str(error).removeprefix(f"{self.folder}: ")
            raise OSError(f"{self.folder}: cannot be used ({reason[:1].lower()}{reason[1:]})") from error


def _remove(folder: Path) -> None:
    """Remove what stands where a database should: a file, or LMDB's two files and an empty folder."""
    if folder.is_dir():
        for name in ("data.mdb", "lock.mdb"):
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
