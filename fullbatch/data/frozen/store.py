"""Databases of images in LMDB, and how they are read. Nothing in one is ever unpickled."""

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from torch import Tensor

from fullbatch.data.frozen.records import (
    HEADER,
    KEY,
    Manifest,
    OtherImagesError,
    packed,
    parsed,
    require_equal,
    verify,
)
from fullbatch.runtime.lmdb_checks import refuse_foreign, refuse_truncated
from fullbatch.runtime.stop_requests import stop_if_interrupted

_TABLE, _MANIFEST, _DIGEST = b"pictures", b"manifest", b"digest"


@dataclass(frozen=True)
class Access:
    """How LMDB opens a database.

    Args:
        max_readers: processes that may read at the same time.
        readahead: whether the system reads ahead; False is faster in random order where the memory is smaller.
        meminit: whether LMDB zeroes memory that it writes out.
        max_spare_txns: read transactions that are kept for the next one.
        access: ``get`` looks each record up; ``cursor`` moves from one to the next, faster where these are neighbours.
    """

    max_readers: int = 128
    readahead: bool = True
    meminit: bool = True
    max_spare_txns: int = 128
    access: str = "get"

    def options(self) -> dict[str, Any]:
        """Return what ``lmdb.open`` is told, to read or to write."""
        names = ("max_readers", "readahead", "meminit", "max_spare_txns")
        return {"max_dbs": 1, **{name: getattr(self, name) for name in names}}


class Environment:
    """An open database: LMDB's environment and the table of its records."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.identity = folder, _identity(folder)
        if options.get("readonly", False):
            refuse_foreign(folder)
        self.lmdb = lmdb.open(str(folder), **options)
        try:
            refuse_truncated(folder, self.lmdb)
            self.table = self.lmdb.open_db(_TABLE, create=not options.get("readonly", False))
        except BaseException:
            self.lmdb.close()
            raise

    def close(self) -> None:
        """Close the files."""
        self.lmdb.close()

    def manifest(self) -> Manifest | None:
        """Return the manifest, None where there is none; ``ValueError`` where it is none of this program's."""
        with self.lmdb.begin() as transaction:
            content = transaction.get(_MANIFEST)
        return None if content is None else parsed(content)

    def put_manifest(self, manifest: Manifest) -> None:
        """Write the manifest."""
        with self.lmdb.begin(write=True) as transaction:
            transaction.put(_MANIFEST, json.dumps(manifest, indent=1).encode())

    def put_digest(self, value: str) -> None:
        """Write the digest of the records; see ``digest``."""
        with self.lmdb.begin(write=True) as transaction:
            transaction.put(_DIGEST, value.encode())

    def stored_digest(self) -> str | None:
        """Return the digest that was written when the database was complete."""
        with self.lmdb.begin() as transaction:
            value = transaction.get(_DIGEST)
        return None if value is None else bytes(value).decode("ascii", "replace")

    def __len__(self) -> int:
        with self.lmdb.begin() as transaction:
            return int(transaction.stat(self.table)["entries"])

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values in the order of the keys."""
        with self.lmdb.begin() as transaction, transaction.cursor(self.table) as cursor:
            yield from cursor

    def keys(self) -> np.ndarray:
        """Return the keys that are there: int64 [n, 2], (round, sample)."""
        with self.lmdb.begin() as transaction, transaction.cursor(self.table) as cursor:
            content = b"".join(cursor.iternext(keys=True, values=False))
        return np.frombuffer(content, KEY).reshape(-1, 2).astype(np.int64)


_opened: dict[str, Environment] = {}  # by folder: LMDB refuses to open one twice in a process
_guard = threading.RLock()  # held while one of them is used


def opened(folder: Path, access: Access) -> Environment:
    """Return the database in ``folder``, opened by this process for reading alone.

    Raises:
        OSError: it is missing, damaged, truncated or of another program; the message names it.
    """
    known = _opened.get(str(folder))
    if known is not None and known.identity == _identity(folder):
        return known
    close(folder)
    with reading(folder):
        lock = os.access(folder, os.W_OK)  # who cannot write there cannot sign the list of readers, and need not
        _opened[str(folder)] = Environment(folder, readonly=True, create=False, lock=lock, **access.options())
    return _opened[str(folder)]


def close(folder: Path) -> None:
    """Forget that the database in ``folder`` is open."""
    known = _opened.pop(str(folder), None)
    if known is not None:
        known.close()


def _close_before_fork() -> None:
    """LMDB's environments do not survive a fork, so parent and child both open anew what they need."""
    _guard.acquire()
    for folder in list(_opened):
        close(Path(folder))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_before_fork, after_in_parent=_guard.release, after_in_child=_guard.release)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Let what LMDB finds wrong with a database be an ``OSError`` that names it."""
    try:
        yield
    except OtherImagesError:
        raise
    except (lmdb.Error, ValueError) as error:
        reason = str(error).removeprefix(f"{folder}: ")
        raise OSError(
            f"{folder}: not a whole database of this program ({reason}); it is left as it is; "
            "data.db.rebuild_existing_database=True makes it anew"
        ) from error


class StoredImages:
    """The images of a finished database, round by round: image ``round * count + sample``.

    Args:
        folder: of the database.
        manifest: what it must hold.
        access: how to open it.

    Raises:
        OSError: it is missing, damaged or incomplete.
        ValueError: it holds other images.
    """

    def __init__(self, folder: Path, manifest: Manifest, access: Access) -> None:
        self.folder, self.manifest, self._access = folder, manifest, access
        self.shape: tuple[int, int, int] = tuple(manifest["shape"])
        self._count = int(manifest["count"])
        self._verified: object = None
        with reading(folder):
            environment = self._environment()
            if len(environment) != len(self):
                raise ValueError(f"{len(environment)} of {len(self)} images")

    def __len__(self) -> int:
        return int(self.manifest["rounds"]) * self._count

    def fetch(self, ids: Tensor) -> Tensor:
        """Return the images ``ids`` (int64 [n]) as uint8 [n, C, H, W]; ``OSError`` where one is damaged."""
        numbers = ids.numpy()
        keys = packed(numbers // self._count, numbers % self._count)
        with _guard, reading(self.folder):
            environment = self._environment()
            with environment.lmdb.begin(buffers=True, db=environment.table) as transaction:
                found = _cursor(transaction, keys) if self._access.access == "cursor" else _get(transaction, keys)
                content = b"".join(verify(*entry, self._size) for entry in zip(keys, found, strict=True))
        records = np.frombuffer(content, np.uint8).reshape(len(keys), self._size)
        images = torch.from_numpy(records[:, HEADER.size :].copy())
        return images.view(len(keys), *self.shape)

    def checksum(self) -> str:
        """Return what stands for all the images: the digest of the database."""
        return self._environment().stored_digest() or ""

    @property
    def _size(self) -> int:
        return HEADER.size + math.prod(self.shape)

    def _environment(self) -> Environment:
        """Return the open database; where it is new or was replaced, look at its manifest first."""
        environment = opened(self.folder, self._access)
        if environment.identity != self._verified:
            require_equal(self.folder, environment.manifest(), self.manifest)
            self._verified = environment.identity
        return environment


def digest(environment: Environment) -> str:
    """Return BLAKE2b over all keys and values in the order of the keys: equal for equal images and labels."""
    state = hashlib.blake2b(digest_size=16)
    for key, value in environment.records():
        stop_if_interrupted("stopped with all images written")
        state.update(key)
        state.update(value)
    return state.hexdigest()


def _get(transaction: Any, keys: Sequence[bytes]) -> list[memoryview | None]:
    look_up: Callable[[bytes], memoryview | None] = transaction.get
    return [look_up(key) for key in keys]


def _cursor(transaction: Any, keys: Sequence[bytes]) -> list[memoryview | None]:
    with transaction.cursor() as cursor:  # from a neighbour LMDB moves without a search from the root
        return [cursor.value() if cursor.set_key(key) else None for key in keys]


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder / "data.mdb")
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
