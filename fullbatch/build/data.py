"""From settings to objects: images, label noise, blocks and the training loss."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from enum import IntEnum

import torch

from fullbatch.build.frozen_data import build_frozen
from fullbatch.build.user_code import UserLoss, user_function
from fullbatch.data.augmentation import AUGMENTATION, Augmentation
from fullbatch.data.dataset import ImageData, ImageRequest, ImageSet, load_images
from fullbatch.data.label_noise import with_label_noise
from fullbatch.data.loader import BlockFormat, BlockLoader, ReadOptions
from fullbatch.objective.losses import Loss, loss_function
from fullbatch.randomness import derive_seed
from fullbatch.runtime.device import DTYPES
from fullbatch.runtime.memory_format import MEMORY_FORMATS
from fullbatch.settings import Hyp, Run
from fullbatch.settings.data import LMDB

log = logging.getLogger(__name__)


class Stream(IntEnum):
    """The uses of a run's seed; each has random numbers of its own."""

    WEIGHTS = 0
    BLOCKS = 1
    AUGMENTATION = AUGMENTATION
    NOISE = 3
    LABELS = 4
    ANALYSIS = 5
    GLOBAL = 6
    """The global generators, for modules and transforms of the user that draw from them outside a step."""

    def seed(self, run_seed: int) -> int:
        """Return the stream's own seed."""
        return derive_seed(run_seed, self)


@contextmanager
def about(key: str) -> Iterator[None]:
    """Prefix the message of a ``ValueError`` with the key it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def build_data(run: Run, seed: int, *, training: bool = True) -> ImageData:
    """Return the images; with label noise and frozen copies from a database where the settings request them.

    Without ``training`` the training set is left as it is, without noise in its labels and without frozen copies.
    """
    settings, fraction = run.data, run.hyp.label_noise
    values = {field.name: getattr(settings, field.name) for field in fields(ImageRequest)}
    data = noisy = load_images(settings.name, ImageRequest(**{**values, "mirrors": settings.mirrors or ()}))
    shape = f"{data.channels}x{data.pixels}x{data.pixels}"
    counts = f"{len(data.train):,} training and {len(data.valid):,} validation images"
    log.info("data %s: %s of %s in %d classes", settings.name, counts, shape, len(data.classes))
    if fraction and training:
        noisy = with_label_noise(data, fraction, Stream.LABELS.seed(seed))
        replaced = int((noisy.train.labels != data.train.labels).sum())
        log.info("label noise %g: %s of %s training labels replaced", fraction, f"{replaced:,}", f"{len(data.train):,}")
    if not isinstance(settings.db, LMDB):
        return noisy
    # The database holds the labels without noise, and all copies of a sample get the same noisy label.
    return build_frozen(run, settings.db, data, noisy.train.labels if training else None)


def build_loader(run: Run, data: ImageData, part: ImageSet, seed: int, device: torch.device) -> BlockLoader:
    """Build the loader of the training or the validation set, ``part`` of ``data``."""
    training = part is data.train
    key = "augmentations_train" if training else "augmentations_val"
    transforms = getattr(run.data, key)
    augmentation = Augmentation(transforms, Stream.AUGMENTATION.seed(seed), f"data.{key}") if transforms else None
    copies = build_loss(run.hyp).copies if training else 1
    if copies > 1 and augmentation is None:
        log.warning("hyp.loss_modification=maxup-%d: without data.%s all copies of a sample are equal", copies, key)
    return BlockLoader(
        part,
        batch_size=run.data.batch_size,
        format=BlockFormat(
            mean=data.mean if run.data.normalize else None,
            std=data.std if run.data.normalize else None,
            device=device,
            dtype=DTYPES[run.impl.dtype],
            memory_format=MEMORY_FORMATS[run.impl.memory],
        ),
        augmentation=augmentation,
        reading=ReadOptions(
            caching="ram" if run.data.caching is True else run.data.caching,
            num_workers=torch.get_num_threads(),
            pin_memory=run.impl.pin_memory,
            non_blocking=run.impl.non_blocking,
            persistent_workers=run.impl.persistent_workers,
            name="training images" if training else "validation images",
        ),
        drop_last=run.data.drop_last and training,
        rounds=rounds_of_a_step(run) if training else 1,
        copies=copies,
        seed=Stream.BLOCKS.seed(seed),
    )


def rounds_of_a_step(run: Run) -> int:
    """Return how many parts of the training set steps take turns with: the rounds in semi-stochastic mode, else 1."""
    return run.data.db.rounds if run.hyp.train_semi_stochastic and isinstance(run.data.db, LMDB) else 1


def build_loss(hyp: Hyp) -> Loss:
    """Build the training loss: cross-entropy or that of the user, modified as the settings say."""
    with about("hyp.loss_modification"):
        loss = loss_function(hyp.loss_modification, hyp.label_smoothing)
    if hyp.loss_target is None:
        return loss
    key = f"hyp.loss_target={hyp.loss_target}"
    others = {
        "label_smoothing": bool(hyp.label_smoothing),
        "test_time_flips": hyp.test_time_flips,
        "loss_modification": (hyp.loss_modification or "").lower() == "squared",
    }
    for name in (name for name, given in others.items() if given):
        raise ValueError(f"hyp.{name}={getattr(hyp, name)}: belongs to another loss than {key}")
    return replace(loss, per_sample=UserLoss(key, user_function("hyp.loss_target", hyp.loss_target)))
