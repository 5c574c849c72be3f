"""Building a database of augmented images: in parallel, in pieces, and over again only where nothing is yet.

Copies are functions of (seed, round, sample), so any number of processes, killed any number of times, writes the same
keys and values. A database is built in a hidden folder beside its own, which takes its name when all is there.
"""

import logging
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from fullbatch.data.frozen import store
from fullbatch.data.frozen.copies import CHUNK, Recipe, made, pieces
from fullbatch.data.frozen.records import HEADER, Manifest, require_equal
from fullbatch.data.frozen.store import Access, Environment, StoredImages
from fullbatch.runtime.locks import hold_lock
from fullbatch.runtime.logs import progress
from fullbatch.runtime.stop_requests import InterruptedWork, interrupted, stop_if_interrupted

_log = logging.getLogger(__name__)
_PAGE = 4096  # bytes, of LMDB
_INDEX = 128  # bytes a record that are not its value, at most


@dataclass(frozen=True)
class Writing:
    """How a database is written; nothing here changes what is in it.

    Args:
        num_workers: processes that make the copies; 0: this one does.
        write_frequency: images of a piece: what is written at once, and what a kill costs at most.
        shuffle: whether the records of a round are laid down in a mixed order, instead of that of the samples.
        rebuild: whether a database that is there is replaced.
    """

    num_workers: int = 0
    write_frequency: int = 65536
    shuffle: bool = True
    rebuild: bool = False


def stored_images(recipe: Recipe, folder: Path, access: Access, writing: Writing) -> StoredImages:
    """Return the images of the database in ``folder``, built where it is not there; one process builds, others wait.

    Raises:
        ValueError: there is a database of other images, and ``writing.rebuild`` is False.
        OSError: it is damaged, or cannot be read or written.
    """
    manifest = recipe.manifest()
    if writing.rebuild or not folder.exists():
        with _only_builder(folder) as waited:
            if not folder.exists() or (writing.rebuild and not (waited and _holds(folder, manifest, access))):
                try:
                    _build(recipe, manifest, _unfinished(folder), access, writing)
                except InterruptedWork as error:
                    raise InterruptedWork(f"{folder}: {error}; the next start continues after them") from error
                _take_name(_unfinished(folder), folder)
    return StoredImages(folder, manifest, access)


def temporary_images(recipe: Recipe, access: Access, writing: Writing) -> StoredImages:
    """Return the images of a database in a temporary folder, removed when they are no longer used."""
    folder = Path(tempfile.mkdtemp(prefix="fullbatch-")) / "images"
    manifest = recipe.manifest()
    try:
        _build(recipe, manifest, folder, access, writing)
        images = StoredImages(folder, manifest, access)
    except BaseException:
        shutil.rmtree(folder.parent)
        raise
    weakref.finalize(images, _remove, folder, os.getpid())  # at the latest when the interpreter exits
    return images


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a forked worker
        store.close(folder)
        shutil.rmtree(folder.parent, ignore_errors=True)


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.building")


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


def _holds(folder: Path, manifest: Manifest, access: Access) -> bool:
    try:
        StoredImages(folder, manifest, access)
    except (OSError, ValueError):
        return False
    return True


def _take_name(unfinished: Path, folder: Path) -> None:
    """Put the database in its place, whole at every moment; who reads the one before goes on reading that."""
    before = folder.with_name(f".{folder.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    store.close(folder)
    if folder.exists():
        folder.rename(before)
    unfinished.rename(folder)
    shutil.rmtree(before, ignore_errors=True)


def _build(recipe: Recipe, manifest: Manifest, folder: Path, access: Access, writing: Writing) -> None:
    """Write what is missing of the database in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    total, size = recipe.rounds * len(recipe.source), _bytes_on_disk(manifest)
    room = 4 * total * size + (1 << 28)  # addresses, not bytes on the disk: those are taken as they are written
    environment = _continued(folder, manifest, {"map_size": room, **access.options()}, writing.rebuild)
    try:
        present = _present(environment, recipe)
        _require_space(folder, (total - int(present.sum())) * size)
        with _told_of_the_disk(folder):
            if environment.manifest() is None:
                environment.put_manifest(manifest)
            _write(recipe, present, environment, writing)
            environment.put_digest(store.digest(environment))
    finally:
        environment.close()


def _continued(folder: Path, manifest: Manifest, options: dict[str, Any], rebuild: bool) -> Environment:
    """Open the unfinished database; one that cannot be continued is refused or, to ``rebuild``, thrown away."""
    try:
        with store.reading(folder):
            environment = Environment(folder, **options)
            try:
                found = environment.manifest()
                if found is not None:
                    require_equal(folder, found, manifest)
            except BaseException:
                environment.close()
                raise
    except (OSError, ValueError):
        if not rebuild:
            raise
        shutil.rmtree(folder)
        folder.mkdir()
        environment = Environment(folder, **options)
    return environment


def _present(environment: Environment, recipe: Recipe) -> np.ndarray:
    """Say which records are there: bool [rounds, samples]."""
    present = np.zeros((recipe.rounds, len(recipe.source)), dtype=bool)
    present[tuple(environment.keys().T)] = True
    return present


def _write(recipe: Recipe, present: np.ndarray, environment: Environment, writing: Writing) -> None:
    parts = pieces(recipe, present, writing.write_frequency, shuffle=writing.shuffle)
    work = [(place, ids) for place, part in parts for ids in part.split(CHUNK)]
    records = made(recipe, work, writing.num_workers)
    done = int(present.sum())
    with progress(f"database of {recipe.name}", present.size, done) as advance, closing(records):
        for _, part in parts:
            with environment.lmdb.begin(write=True) as transaction, transaction.cursor(environment.table) as cursor:
                for ids in part.split(CHUNK):
                    cursor.putmulti(next(records))
                    advance(len(ids))
                    done += len(ids)
                    if interrupted():
                        break  # what of the piece is there is written
            stop_if_interrupted(f"stopped with {done:,} of {present.size:,} images written")


def _bytes_on_disk(manifest: Manifest) -> int:
    """Return about how much of the disk a record takes: its own pages, or where it is small a part of one."""
    value = HEADER.size + math.prod(manifest["shape"])
    return _INDEX + (-(-(value + 16) // _PAGE) * _PAGE if value > _PAGE // 2 else value)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder}: needs about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of the disk are free; "
            "make room, or choose another data.db.path or fewer data.db.rounds"
        )


@contextmanager
def _told_of_the_disk(folder: Path) -> Iterator[None]:
    """Let a refusal of the disk be an ``OSError`` that names the folder."""
    try:
        yield
    except lmdb.Error as error:
        free = shutil.disk_usage(folder).free / 2**30
        raise OSError(
            f"{folder}: cannot be written ({error}; {free:.1f} GiB of the disk are free); "
            "the pieces written before stay, and the next run continues after them"
        ) from error
