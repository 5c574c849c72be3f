"""Building a database of augmented images: in parallel, in pieces, continued after a kill.

Copies are functions of (seed, round, sample), so any number of processes, killed at any time, writes the same keys and
values. A database is built in a hidden folder beside its own, which is renamed when it is complete.
"""

import logging
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import lmdb
import numpy as np

from fullbatch.data.frozen import store
from fullbatch.data.frozen.copies import CHUNK, Recipe, make_records, pieces
from fullbatch.data.frozen.records import HEADER, IMAGES, KEY, verify
from fullbatch.data.frozen.store import Environment, StoredImages
from fullbatch.runtime.files import format_bytes
from fullbatch.runtime.lmdb import DamagedDatabaseError, DatabaseMismatchError, LMDBOptions
from fullbatch.runtime.locks import hold_lock
from fullbatch.runtime.logs import progress
from fullbatch.runtime.manifests import Manifest
from fullbatch.runtime.stop_requests import InterruptedWork, interrupted, stop_if_interrupted

_log = logging.getLogger(__name__)
_PAGE = 4096  # bytes, of LMDB
_INDEX = 128  # bytes per record beside its value, at most


@dataclass(frozen=True)
class Writing:
    """How a database is written; its content does not depend on it.

    Args:
        num_workers: number of processes that make the copies; 0: this process makes them.
        write_frequency: images per transaction, the most that a kill costs.
        shuffle: whether the records of a round are written in random order instead of that of the samples.
        rebuild: whether an existing database is replaced.
    """

    num_workers: int = 0
    write_frequency: int = 65536
    shuffle: bool = True
    rebuild: bool = False


def stored_images(recipe: Recipe, folder: Path, options: LMDBOptions, writing: Writing) -> StoredImages:
    """Return the images of the database in ``folder``; where it is missing, one process builds it and others wait.

    Raises:
        DatabaseMismatchError: there is a database of other images, and ``writing.rebuild`` is False.
        OSError: the database is damaged, or cannot be read or written.
    """
    manifest = recipe.manifest()
    if writing.rebuild or not folder.exists():
        unfinished = folder.with_name(f".{folder.name}.building")
        with _only_builder(folder) as waited:
            if not folder.exists() or (writing.rebuild and not (waited and _holds(folder, manifest, options))):
                try:
                    _build(recipe, manifest, unfinished, options, writing)
                except InterruptedWork as error:
                    raise InterruptedWork(f"{folder}: {error}; the next start continues after them") from error
                _replace_folder(folder, unfinished)
    return StoredImages(folder, manifest, options)


def temporary_images(recipe: Recipe, options: LMDBOptions, writing: Writing) -> StoredImages:
    """Return the images of a database in a temporary folder, which is removed when they are no longer used."""
    folder = Path(tempfile.mkdtemp(prefix="fullbatch-")) / "images"
    manifest = recipe.manifest()
    try:
        _build(recipe, manifest, folder, options, writing)
        images = StoredImages(folder, manifest, options)
    except BaseException:
        shutil.rmtree(folder.parent)
        raise
    weakref.finalize(images, _remove, folder, os.getpid())  # at the latest when the interpreter exits
    return images


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a forked worker
        store.close(folder)
        shutil.rmtree(folder.parent, ignore_errors=True)


@contextmanager
def _only_builder(folder: Path) -> Iterator[bool]:
    """Keep other processes from building the database in ``folder``; yield whether one had to be waited for."""
    messages = iter([f"{folder}: another process is building this database; waiting"])

    def poll() -> None:
        for message in messages:
            _log.info(message)
        stop_if_interrupted(f"{folder}: stopped while another process is building this database")

    with hold_lock(folder.with_name(f".{folder.name}.lock"), poll=poll) as waited:
        yield waited


def _holds(folder: Path, manifest: Manifest, options: LMDBOptions) -> bool:
    try:
        StoredImages(folder, manifest, options)
    except (OSError, ValueError):
        return False
    return True


def _replace_folder(folder: Path, unfinished: Path) -> None:
    """Rename the finished database; readers of the previous one keep reading its files."""
    previous = folder.with_name(f".{folder.name}.before")
    shutil.rmtree(previous, ignore_errors=True)
    store.close(folder)
    if folder.exists():
        folder.rename(previous)
    unfinished.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def _build(recipe: Recipe, manifest: Manifest, folder: Path, options: LMDBOptions, writing: Writing) -> None:
    """Write the missing records of the database in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    total, size = recipe.rounds * len(recipe.source), _bytes_on_disk(manifest)
    written = (folder / "data.mdb").stat().st_size if (folder / "data.mdb").exists() else 0
    needed, free = total * size - written, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder}: needs about {format_bytes(needed)}, but only {format_bytes(free)} of the disk are free; "
            "free some space, or choose another data.db.path or fewer data.db.rounds"
        )
    room = 4 * total * size + (1 << 28)  # addresses; bytes on the disk are taken as they are written
    environment = _open_unfinished(folder, manifest, replace(options, map_size=room), writing.rebuild)
    try:
        present = _intact_records(environment, manifest)
        if environment.manifest() is None:
            environment.put_manifest(manifest)
        _write(recipe, present, environment, writing)
        environment.put_digest(store.digest(environment))
    except lmdb.Error as error:
        raise OSError(
            f"{folder}: cannot be written ({error}; {format_bytes(shutil.disk_usage(folder).free)} of the disk are "
            "free); the next run continues after the images written so far"
        ) from error
    finally:
        environment.close()


def _open_unfinished(folder: Path, manifest: Manifest, options: LMDBOptions, rebuild: bool) -> Environment:
    """Open the unfinished database; one that cannot be continued is refused or, with ``rebuild``, replaced."""
    try:
        return _open_writable(folder, manifest, options)
    except (DamagedDatabaseError, DatabaseMismatchError):
        if not rebuild:
            raise
    shutil.rmtree(folder)
    folder.mkdir()
    return _open_writable(folder, manifest, options)


def _open_writable(folder: Path, manifest: Manifest, options: LMDBOptions) -> Environment:
    file = folder / "data.mdb"
    with IMAGES.report_errors(folder):
        if file.exists() and file.stat().st_size > 0:
            store.digest_in_child(folder)
        environment = Environment(folder, options)
        try:
            if (stored := environment.manifest()) is not None:
                IMAGES.require_same(folder, stored, manifest)
            if len(keys := environment.keys()) and (keys.max(0) >= (manifest["rounds"], manifest["count"])).any():
                raise ValueError("it has samples or rounds that do not exist")
        except BaseException:
            environment.close()
            raise
    return environment


def _intact_records(environment: Environment, manifest: Manifest) -> np.ndarray:
    """Return which records exist and are intact, bool [rounds, samples]; the others are written anew."""
    present = np.zeros((manifest["rounds"], manifest["count"]), dtype=bool)
    size = HEADER.size + math.prod(manifest["shape"])
    for key, value in environment.records():
        with suppress(ValueError):
            verify(key, memoryview(value), size)
            present[tuple(np.frombuffer(key, KEY))] = True
    return present


def _write(recipe: Recipe, present: np.ndarray, environment: Environment, writing: Writing) -> None:
    parts = pieces(recipe, present, writing.write_frequency, shuffle=writing.shuffle)
    work = [(ids, number) for part, number in parts for ids in part.split(CHUNK)]
    records = make_records(recipe, work, writing.num_workers)
    done = int(present.sum())
    with progress(f"database of {recipe.name}", present.size, done) as advance, closing(records):
        for part, _ in parts:
            with environment.lmdb.begin(write=True) as transaction, transaction.cursor(environment.table) as cursor:
                for ids in part.split(CHUNK):
                    cursor.putmulti(next(records))
                    advance(len(ids))
                    done += len(ids)
                    if interrupted():
                        break  # and commit the part of the piece that is there
            stop_if_interrupted(f"stopped with {done:,} of {present.size:,} images written")


def _bytes_on_disk(manifest: Manifest) -> int:
    """Return about how many bytes of the disk a record takes: pages of its own or, where it is small, part of one."""
    value = HEADER.size + math.prod(manifest["shape"])
    return _INDEX + (-(-(value + 16) // _PAGE) * _PAGE if value > _PAGE // 2 else value)
