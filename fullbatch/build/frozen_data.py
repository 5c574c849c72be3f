"""From settings to images in a database: frozen copies of the training set and of the validation set."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fullbatch.data.dataset import ImageData, ImageSet, TensorImages
from fullbatch.runtime.files import expand_home
from fullbatch.settings import Run
from fullbatch.settings.data import LMDB

log = logging.getLogger(__name__)

_DIVISORS = {"pixels": 1, "pixels/8": 8}  # words in the arguments of transforms: the side divided by these


def build_frozen(run: Run, settings: LMDB, data: ImageData, labels: Tensor | None) -> ImageData:
    """Return the data with frozen copies in place of the images; the database is built where it is missing.

    Args:
        run: the run; its dry run freezes only the first block.
        settings: of the database.
        data: the images; the labels in them are part of the database's manifest.
        labels: for training, int64 [N]; None leaves the training images as they are.

    Returns:
        The data with ``rounds`` x N training samples, round by round.
    """
    if run.dryrun and labels is not None:
        ids = torch.arange(min(run.data.batch_size, len(data.train)))
        first = ImageSet(TensorImages(data.train.images.fetch(ids)), data.train.labels[ids], data.train.classes)
        data = replace(data, train=first)
    train = data.train
    if labels is not None:
        train = replace(_freeze(run, settings, data, "train"), labels=labels[: len(train)].repeat(settings.rounds))
    valid = _freeze(run, settings, data, "val") if settings.augmentations_val else data.valid
    return replace(data, train=train, valid=valid)


def _freeze(run: Run, settings: LMDB, data: ImageData, split: str) -> ImageSet:
    from fullbatch.data.frozen.build import Writing, stored_images, temporary_images  # noqa: PLC0415
    from fullbatch.data.frozen.copies import Recipe  # noqa: PLC0415
    from fullbatch.runtime.lmdb import LMDBOptions  # noqa: PLC0415

    training = split == "train"
    source, rounds = (data.train, settings.rounds) if training else (data.valid, 1)
    key = f"data.db.augmentations_{split}"
    transforms = (settings.augmentations_train if training else settings.augmentations_val) or {}
    recipe = Recipe(
        run.data.name,
        source,
        _replace_words(transforms, data.pixels if settings.pixels is None else settings.pixels),
        settings.seed,
        rounds,
        first_round_clean=training and settings.first_round_clean,
        key=key,
    )
    _check_shape(settings, recipe.manifest()["shape"], key)
    options = LMDBOptions(
        settings.max_readers, settings.readahead, settings.meminit, settings.max_spare_txns, access=settings.access
    )
    workers = torch.get_num_threads()
    writing = Writing(
        num_workers=workers if workers > 1 else 0,
        write_frequency=settings.write_frequency,
        shuffle=settings.shuffle_while_writing,
        rebuild=settings.rebuild_existing_database,
    )
    if settings.temporary_database or run.dryrun:
        images = temporary_images(recipe, options, writing)
    else:
        folder = expand_home(settings.path, "data.db.path") / f"{run.data.name}_{split}_{len(source)}x{rounds}"
        images = stored_images(recipe, folder, options, writing)
    log.info("database %s: %s images, digest %s", images.folder, f"{len(images):,}", images.checksum())
    return ImageSet(images, source.labels.repeat(rounds), source.classes)


def _replace_words(arguments: Any, pixels: int) -> Any:
    """Return the arguments of transforms with numbers for the words ``pixels`` and ``pixels/8``."""
    if isinstance(arguments, Mapping):
        return {name: _replace_words(value, pixels) for name, value in arguments.items()}
    if isinstance(arguments, list):
        return [_replace_words(value, pixels) for value in arguments]
    return pixels // _DIVISORS[arguments] if isinstance(arguments, str) and arguments in _DIVISORS else arguments


def _check_shape(settings: LMDB, shape: list[int], key: str) -> None:
    channels, height, width = shape
    if settings.pixels is not None and (height, width) != (settings.pixels, settings.pixels):
        raise ValueError(
            f"data.db.pixels={settings.pixels}: {key} makes images of {height}x{width}; give that side or none"
        )
    if settings.mean is not None and len(settings.mean) != channels:
        raise ValueError(f"data.db.mean: {len(settings.mean)} values, but {key} makes images of {channels} channels")
