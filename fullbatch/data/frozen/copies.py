"""Frozen copies: what a database of augmented images is made of, and the processes that make it.

The copy of a sample in a round is a function of (seed, round, sample): the augmentation of that sample at the step
``round``.
"""

import json
import platform
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fullbatch.data.augmentation import Augmentation, augmentation_seed
from fullbatch.data.frozen.records import FORMAT, Manifest, encoded, packed
from fullbatch.data.images import ImageSet
from fullbatch.data.reading import delivered, reader_of
from fullbatch.randomness import random_bits

_ORDER = 0x4F72_6465_7200  # stream of the seed
CHUNK = 256  # copies that a worker makes at once


@dataclass(frozen=True)
class Recipe:
    """What a database is made of.

    Args:
        name: of the data set.
        source: its images.
        transforms: of the copies, torchvision's name -> arguments.
        seed: of a run that would augment in the same way, step by step.
        rounds: copies of each sample.
        first_round_clean: whether the copies of round 0 are the images as they are.
        key: the setting that holds ``transforms``, for the messages.
    """

    name: str
    source: ImageSet
    transforms: Mapping[str, Any]
    seed: int
    rounds: int = 1
    first_round_clean: bool = False
    key: str = "data.db.augmentations_train"

    def copies(self, ids: Tensor, place: int) -> Tensor:
        """Return the copies of the samples ``ids`` (int64 [n]) in the round ``place``, uint8 [n, C, H, W]."""
        if place == 0 and self.first_round_clean:
            return self.source.images.fetch(ids)
        augmentation = Augmentation(self.transforms, augmentation_seed(self.seed), self.key)
        reader, rest = reader_of(self.source.images, augmentation)
        images = reader.read(ids, place)
        return images if rest is None else rest(images, ids, place)

    def manifest(self) -> Manifest:
        """Describe the database; ``ValueError`` where the transforms do not fit the images, or each other."""
        first = torch.zeros(1, dtype=torch.int64)
        shapes = {tuple(self.copies(first, place).shape[1:]) for place in range(min(self.rounds, 2))}
        if len(shapes) > 1:
            raise ValueError(f"data.db.first_round_clean=True: {self.key} changes the size of the images")
        manifest = {
            "format": FORMAT,
            "name": self.name,
            "source": self.source.checksum(),
            "count": len(self.source),
            "shape": list(shapes.pop()),
            "classes": list(self.source.classes),
            "transforms": [[name, arguments] for name, arguments in self.transforms.items()],
            "seed": self.seed,
            "rounds": self.rounds,
            "first_round_clean": self.first_round_clean,
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("fullbatch", "torch", "torchvision", "lmdb")},
        }
        return cast(Manifest, json.loads(json.dumps(manifest)))  # as it is read again: lists in the place of tuples


def pieces(recipe: Recipe, present: np.ndarray, size: int, *, shuffle: bool) -> list[tuple[int, Tensor]]:
    """List what is written at once, (round, samples): ``size`` samples of a round or what is left, none ``present``.

    Args:
        recipe: of the copies.
        present: bool [rounds, samples], what need not be made.
        size: samples of a piece.
        shuffle: whether samples come in an order drawn with the recipe's seed, another one in each round.
    """
    parts = []
    for place in range(recipe.rounds):
        ids = torch.arange(len(recipe.source))
        if shuffle:
            ids = ids[torch.argsort(random_bits(ids, recipe.seed, _ORDER, place), stable=True)]
        missing = ids[~torch.from_numpy(present[place])[ids]]
        parts += [(place, part) for part in missing.split(size) if len(part)]
    return parts


def made(
    recipe: Recipe, work: Sequence[tuple[int, Tensor]], num_workers: int
) -> Generator[list[tuple[bytes, bytes]], None, None]:
    """Make the copies in ``work``, (round, samples), in this process or in others; yield the records of each entry."""
    loader: DataLoader[Any] = DataLoader(
        _Maker(recipe),
        batch_size=None,
        sampler=work,
        num_workers=min(num_workers, len(work)),
        generator=torch.Generator(),  # else the global generator would be drawn from
    )
    for (place, ids), copies in zip(work, delivered(loader), strict=True):
        labels = recipe.source.labels[ids].tolist()
        values = (encoded(label, image) for label, image in zip(labels, copies.numpy(), strict=True))
        yield list(zip(packed(np.full(len(ids), place), ids.numpy()), values, strict=True))


class _Maker(Dataset[Any]):
    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def __getitem__(self, work: Any) -> Tensor | Exception:
        place, ids = work
        try:
            return self._recipe.copies(ids, place)
        except (OSError, ValueError) as error:  # as a value: raised, it would come with the worker's stack trace
            return error
