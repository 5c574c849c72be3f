"""From settings to images in a database: the frozen copies of the training set, and of the validation set."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fullbatch.data.dataset import ImageData, ImageSet, TensorImages
from fullbatch.settings import Run
from fullbatch.settings.data import LMDB

log = logging.getLogger(__name__)

_WORDS = {"pixels": 1, "pixels/8": 8}  # in the arguments of transforms: the side of the images divided by these


def build_frozen(run: Run, settings: LMDB, data: ImageData, labels: Tensor) -> ImageData:
    """Put frozen copies in the place of the images, those of the database, which is built where it is missing.

    Args:
        run: the run; its dry run freezes the first block alone.
        settings: of the database.
        data: the images.
        labels: of the training set, int64 [N]; those of ``data`` are part of what the database is known by.

    Returns:
        The data with ``rounds`` x N training samples, round by round.
    """
    if run.dryrun:
        data = replace(data, train=_first(data.train, run.data.batch_size))
    train = _frozen(run, settings, data, "train")
    train = replace(train, labels=labels[: len(data.train)].repeat(settings.rounds))
    valid = _frozen(run, settings, data, "val") if settings.augmentations_val else data.valid
    return replace(data, train=train, valid=valid)


def _frozen(run: Run, settings: LMDB, data: ImageData, split: str) -> ImageSet:
    from fullbatch.data.frozen.build import Writing, stored_images, temporary_images  # noqa: PLC0415
    from fullbatch.data.frozen.copies import Recipe  # noqa: PLC0415
    from fullbatch.data.frozen.store import Access  # noqa: PLC0415

    training = split == "train"
    source, rounds = (data.train, settings.rounds) if training else (data.valid, 1)
    key = f"data.db.augmentations_{split}"
    given = (settings.augmentations_train if training else settings.augmentations_val) or {}
    transforms = _with_numbers(given, data.pixels if settings.pixels is None else settings.pixels)
    recipe = Recipe(
        run.data.name,
        source,
        transforms,
        settings.seed,
        rounds,
        first_round_clean=training and settings.first_round_clean,
        key=key,
    )
    _check_shape(settings, recipe.manifest()["shape"], key)
    access = Access(
        settings.max_readers, settings.readahead, settings.meminit, settings.max_spare_txns, settings.access
    )
    writing = Writing(
        num_workers=_workers(run.impl.threads),
        write_frequency=settings.write_frequency,
        shuffle=settings.shuffle_while_writing,
        rebuild=settings.rebuild_existing_database,
    )
    if settings.temporary_database or run.dryrun:
        images = temporary_images(recipe, access, writing)
    else:
        folder = Path(settings.path).expanduser() / f"{run.data.name}_{split}_{len(source)}x{rounds}"
        images = stored_images(recipe, folder, access, writing)
    log.info("database %s: %s images, digest %s", images.folder, f"{len(images):,}", images.checksum())
    return ImageSet(images, source.labels.repeat(rounds), source.classes)


def _workers(threads: int) -> int:
    """Return the number of processes that make copies; alone, this one does without others."""
    workers = min(threads, torch.get_num_threads())
    return workers if workers > 1 else 0


def _first(images: ImageSet, size: int) -> ImageSet:
    ids = torch.arange(min(size, len(images)))
    return ImageSet(TensorImages(images.images.fetch(ids)), images.labels[ids], images.classes)


def _with_numbers(given: Any, pixels: int) -> Any:
    """Put numbers in the place of the words ``pixels`` and ``pixels/8``."""
    if isinstance(given, Mapping):
        return {name: _with_numbers(value, pixels) for name, value in given.items()}
    if isinstance(given, list):
        return [_with_numbers(value, pixels) for value in given]
    return pixels // _WORDS[given] if isinstance(given, str) and given in _WORDS else given


def _check_shape(settings: LMDB, shape: list[int], key: str) -> None:
    channels, height, width = shape
    if settings.pixels is not None and (height, width) != (settings.pixels, settings.pixels):
        raise ValueError(
            f"data.db.pixels={settings.pixels}: {key} makes images of {height}x{width}; give their side or a blank"
        )
    if settings.mean is not None and len(settings.mean) != channels:
        raise ValueError(f"data.db.mean: {len(settings.mean)} values, but {key} makes images of {channels} channels")
