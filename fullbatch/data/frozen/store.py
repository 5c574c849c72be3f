"""Databases of frozen image copies in LMDB: opening them and reading images."""

import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fullbatch.data.frozen.records import HEADER, IMAGES, KEY, pack_keys, verify
from fullbatch.runtime import lmdb
from fullbatch.runtime.lmdb import LMDBOptions, open_environment
from fullbatch.runtime.manifests import Manifest
from fullbatch.runtime.stop_requests import stop_if_interrupted

_TABLE, _MANIFEST, _DIGEST = b"pictures", b"manifest", b"digest"


class Environment:
    """An open database: LMDB's environment and the table of records.

    Args:
        folder: of the database.
        options: how to open it.
        flags: ``readonly`` and ``lock`` of ``lmdb.open``.

    Raises:
        ValueError: the file is truncated or of another program.
        lmdb.Error: LMDB refuses it.
    """

    def __init__(self, folder: Path, options: LMDBOptions, **flags: bool) -> None:
        self.folder, self.identity = folder, _identity(folder)
        self.lmdb = open_environment(folder, options, max_dbs=1, **flags)
        try:
            self.table = self.lmdb.open_db(_TABLE, create=not flags.get("readonly", False))
        except BaseException:
            self.lmdb.close()
            raise

    def close(self) -> None:
        """Close the files."""
        self.lmdb.close()

    def manifest(self) -> Manifest | None:
        """Return the manifest, None where there is none; ``ValueError`` where it is not of this program."""
        content = self._get(_MANIFEST)
        return None if content is None else IMAGES.parse(content)

    def put_manifest(self, manifest: Manifest) -> None:
        """Write the manifest."""
        self._put(_MANIFEST, json.dumps(manifest, indent=1).encode())

    def put_digest(self, value: str) -> None:
        """Write the digest of the records; see ``digest``."""
        self._put(_DIGEST, value.encode())

    def stored_digest(self) -> str | None:
        """Return the digest that was written when the database was complete."""
        value = self._get(_DIGEST)
        return None if value is None else value.decode("ascii", "replace")

    def _get(self, key: bytes) -> bytes | None:
        with self.lmdb.begin() as transaction:
            value: bytes | None = transaction.get(key)
        return value

    def _put(self, key: bytes, value: bytes) -> None:
        with self.lmdb.begin(write=True) as transaction:
            transaction.put(key, value)

    def __len__(self) -> int:
        with self.lmdb.begin() as transaction:
            return int(transaction.stat(self.table)["entries"])

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values in the order of the keys."""
        with self.lmdb.begin() as transaction, transaction.cursor(self.table) as cursor:
            yield from cursor

    def keys(self) -> np.ndarray:
        """Return the keys of all records: int64 [n, 2], (round, sample)."""
        with self.lmdb.begin() as transaction, transaction.cursor(self.table) as cursor:
            content = b"".join(cursor.iternext(keys=True, values=False))
        return np.frombuffer(content, KEY).reshape(-1, 2).astype(np.int64)


_cached: dict[str, Environment] = {}  # by folder: LMDB refuses to open one twice in a process
_guard = threading.RLock()  # held while one of them is used


def opened(folder: Path, options: LMDBOptions) -> Environment:
    """Return the database in ``folder``, opened for reading once per process.

    Raises:
        OSError: it is missing, damaged, truncated or of another program.
    """
    cached = _cached.get(str(folder))
    if cached is not None and cached.identity == _identity(folder):
        return cached
    close(folder)
    with IMAGES.report_errors(folder):
        lock = os.access(folder, os.W_OK)  # LMDB's list of readers needs write access
        _cached[str(folder)] = Environment(folder, options, readonly=True, lock=lock)
    return _cached[str(folder)]


def close(folder: Path) -> None:
    """Close the database in ``folder`` if it is open."""
    cached = _cached.pop(str(folder), None)
    if cached is not None:
        cached.close()


def _close_before_fork() -> None:
    """Close all databases: LMDB's environments do not survive a fork, so parent and child reopen what they need."""
    _guard.acquire()
    for folder in list(_cached):
        close(Path(folder))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_before_fork, after_in_parent=_guard.release, after_in_child=_guard.release)


class StoredImages:
    """The images of a finished database, round by round: image ``round * count + sample``.

    Args:
        folder: of the database.
        manifest: what it must hold.
        options: how to open it.

    Raises:
        OSError: it is missing, damaged or incomplete.
        DatabaseMismatchError: it holds other images.
    """

    def __init__(self, folder: Path, manifest: Manifest, options: LMDBOptions) -> None:
        self.folder, self.manifest, self._options = folder, manifest, options
        self.shape: tuple[int, int, int] = tuple(manifest["shape"])
        self._count = int(manifest["count"])
        self._record_size = HEADER.size + math.prod(self.shape)
        self._verified: object = None
        with IMAGES.report_errors(folder):
            content = digest_in_child(folder)
            environment = self._environment()
            if environment.stored_digest() not in (None, content):
                raise ValueError("its images are not those that were written")
            if len(environment) != len(self):
                raise ValueError(f"{len(environment)} of {len(self)} images")

    def __len__(self) -> int:
        return int(self.manifest["rounds"]) * self._count

    def fetch(self, ids: Tensor) -> Tensor:
        """Return the images ``ids`` (int64 [n]) as uint8 [n, C, H, W]; ``OSError`` where one is damaged."""
        numbers = ids.numpy()
        keys = pack_keys(numbers // self._count, numbers % self._count)
        with _guard, IMAGES.report_errors(self.folder):
            environment = self._environment()
            with environment.lmdb.begin(buffers=True, db=environment.table) as transaction:
                if self._options.access == "cursor":
                    with transaction.cursor() as cursor:  # to a neighbor LMDB moves without a search from the root
                        values = [cursor.value() if cursor.set_key(key) else None for key in keys]
                else:
                    values = [transaction.get(key) for key in keys]
                content = b"".join(verify(*entry, self._record_size) for entry in zip(keys, values, strict=True))
        records = np.frombuffer(content, np.uint8).reshape(len(keys), self._record_size)
        images = torch.from_numpy(records[:, HEADER.size :].copy())
        return images.view(len(keys), *self.shape)

    def checksum(self) -> str:
        """Return the digest of the database."""
        return self._environment().stored_digest() or ""

    def _environment(self) -> Environment:
        """Return the open database; verify its manifest where the file is new or was replaced."""
        environment = opened(self.folder, self._options)
        if environment.identity != self._verified:
            IMAGES.require_same(self.folder, environment.manifest(), self.manifest)
            self._verified = environment.identity
        return environment


def digest(environment: Environment) -> str:
    """Return the digest of the records: equal for equal images and labels."""
    return lmdb.digest(environment.lmdb, _TABLE, lambda: stop_if_interrupted("stopped with all images written"))


def digest_in_child(folder: Path) -> str:
    """Return the digest, computed by another process, which damage may end; errors as ``lmdb.digest_in_child``."""
    return lmdb.digest_in_child(folder, _TABLE, lambda: stop_if_interrupted(f"stopped while reading {folder}"))


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder / "data.mdb")
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
