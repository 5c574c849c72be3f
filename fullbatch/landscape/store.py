"""Databases of surfaces in LMDB, filled by any number of processes of one machine.

A process leases a point, computes it and stores its value. Each of these is one transaction, which a kill leaves undone
or complete. A lease ends when the value is stored, when its owner has died or when it expires; owners renew it block by
block. So every point is computed even if processes are killed, at worst twice; then the first value stays.
"""

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import numpy as np

from fullbatch.landscape import records
from fullbatch.landscape.grid import Point
from fullbatch.landscape.records import SURFACE, Arrays
from fullbatch.landscape.surface import Value
from fullbatch.runtime.lmdb import LMDBOptions, open_environment, require_usable
from fullbatch.runtime.manifests import Manifest

LEASE_SECONDS = 60.0
_MANIFEST = b"manifest"
_TABLES = (b"arrays", b"points", b"leases")
_BYTES_PER_POINT = 256  # with its lease and its share of the index, at most
_SLACK = 1 << 20  # bytes of pages that are being replaced
_T = TypeVar("_T")


class SurfaceStore:
    """The database of a surface; a context manager that closes it.

    Args:
        folder: of the database, created where it is missing.
        manifest: what the database must hold, from ``fullbatch.landscape.records.manifest_of``.
        arrays: stored in a new database; ``self.arrays`` are those of the database.
        options: how to open it.
        rebuild: whether an existing database is replaced.
        num_points: number of points to reserve space for.
        lease_seconds: duration of a lease.

    Raises:
        DatabaseMismatchError: the database holds another surface.
        ValueError: ``options.map_size`` is too small.
        OSError: the database is damaged, of another program, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        arrays: Arrays,
        options: LMDBOptions | None = None,
        *,
        rebuild: bool = False,
        num_points: int = 0,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.folder, self.owner, self.lease_seconds = folder, records.Owner.here(), lease_seconds
        options = options or LMDBOptions()
        self._map_size = options.map_size
        needed = sum(array.nbytes for array in arrays.values()) + num_points * _BYTES_PER_POINT + _SLACK
        if needed > self._map_size:
            raise ValueError(
                f"viz.map_size={self._map_size:,}: the directions and {num_points:,} points take up to {needed:,} "
                "bytes; increase it to at least that"
            )
        if rebuild:
            _remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._renewed = 0.0
        with SURFACE.report_errors(folder):
            # Without metasync a crash of the machine may undo the last point; a killed process undoes nothing.
            self._lmdb = open_environment(folder, options, max_dbs=len(_TABLES), metasync=False)
            try:
                if self._lmdb.stat()["entries"] > 0:
                    require_usable(folder, self._map_size, _TABLES[1:])
                self.arrays = self._transact(lambda t: self._initialize(t, manifest, arrays), write=True)
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
        """Return the stored values of these points, without those of damaged records."""
        values = self._transact(lambda t: [(point, self._value(t, point)) for point in points])
        return {point: value for point, value in values if value is not None}

    def claim(self, pending: "deque[Point]") -> Point | None:
        """Lease and return the first free point of ``pending``; None where no point is free now.

        That point and those that have values are removed from ``pending``; points that other processes compute move to
        its end.
        """

        def lease(transaction: Any) -> Point | None:
            now = time.time()
            for _ in range(len(pending)):
                point = pending.popleft()
                key = records.key_of(point)
                if self._value(transaction, point) is not None:
                    continue
                if self.owner.may_take(transaction.get(key, db=self._tables[b"leases"]), now):
                    transaction.put(key, self._lease(now), db=self._tables[b"leases"])
                    return point
                pending.append(point)
            return None

        return self._transact(lease, write=True)

    def renew(self, point: Point) -> None:
        """Renew the lease of a point that is being computed, once a third of it is over."""
        now = time.time()
        if now - self._renewed > self.lease_seconds / 3:
            content, table = self._lease(now), self._tables[b"leases"]
            self._transact(lambda t: t.put(records.key_of(point), content, db=table), write=True)

    def release(self, point: Point) -> None:
        """End the lease of a point without a value."""
        self._transact(lambda t: self._drop_own_lease(t, records.key_of(point)), write=True)

    def put(self, point: Point, value: Value) -> None:
        """Store the value of a point, unless it has one that is intact, and end the lease."""

        def write(transaction: Any) -> None:
            key = records.key_of(point)
            if self._value(transaction, point) is None:
                record = records.encode(point, value, self._identity)
                transaction.put(key, record, db=self._tables[b"points"])
            self._drop_own_lease(transaction, key)

        self._transact(write, write=True)

    def _value(self, transaction: Any, point: Point) -> Value | None:
        record = transaction.get(records.key_of(point), db=self._tables[b"points"])
        return records.decode(point, record, self._identity)

    def _lease(self, now: float) -> bytes:
        self._renewed = now
        return self.owner.lease(now + self.lease_seconds)

    def _drop_own_lease(self, transaction: Any, key: bytes) -> None:
        if self.owner.holds(transaction.get(key, db=self._tables[b"leases"])):
            transaction.delete(key, db=self._tables[b"leases"])

    def _initialize(self, transaction: Any, manifest: Manifest, arrays: Arrays) -> dict[str, np.ndarray]:
        """Write manifest and arrays into a new database; in an existing one, compare and read them."""
        content = transaction.get(_MANIFEST)
        if content is None and transaction.stat()["entries"] > 0:
            raise ValueError("no manifest")
        new = content is None
        self._tables = {name: self._lmdb.open_db(name, txn=transaction, create=new) for name in _TABLES}
        table = self._tables[b"arrays"]
        if content is None:
            self._identity = records.identity_of(manifest)
            transaction.put(_MANIFEST, json.dumps(manifest, indent=1).encode())
            for name, array in arrays.items():
                transaction.put(name.encode(), records.encode_array(array), db=table)
            return dict(arrays)
        stored = SURFACE.parse(content)
        SURFACE.require_same(self.folder, stored, manifest)
        self._identity = records.identity_of(stored)
        return {
            name: records.decode_array(name, transaction.get(name.encode(), db=table), described)
            for name, described in stored["arrays"].items()
        }

    def _transact(self, work: Callable[[Any], _T], *, write: bool = False) -> _T:
        with SURFACE.report_errors(self.folder):
            try:
                try:
                    return self._once(work, write)
                except lmdb.MapResizedError:
                    self._lmdb.set_mapsize(0)  # another process has a larger map_size: adopt it
                except lmdb.ReadersFullError:
                    self._lmdb.reader_check()  # frees the places of killed readers
                return self._once(work, write)
            except lmdb.MapFullError as error:
                raise OSError(
                    f"{self.folder}: all viz.map_size={self._map_size:,} bytes are used; a larger number continues "
                    "with the points computed so far"
                ) from error

    def _once(self, work: Callable[[Any], _T], write: bool) -> _T:
        with self._lmdb.begin(write=write) as transaction:
            return work(transaction)


def _remove(folder: Path) -> None:
    """Remove a file, or the two files of a database and then the folder if it is empty."""
    if folder.is_dir():
        for name in ("data.mdb", "lock.mdb"):
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
