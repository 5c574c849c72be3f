"""What a database of augmented images is made of, and the processes that make its copies.

The copy of a sample in a round is a function of (seed, round, sample): the augmentation of the sample at the step
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
from torch.utils.data import DataLoader

from fullbatch.data.augmentation import Augmentation, augmentation_seed
from fullbatch.data.frozen.records import FORMAT, encode, pack_keys
from fullbatch.data.images import ImageSet
from fullbatch.data.reading import WorkerTask, reader_of, worker_results
from fullbatch.randomness import random_bits
from fullbatch.runtime.manifests import Manifest

_ORDER = 0x4F72_6465_7200  # stream of the seed
CHUNK = 256  # copies that a worker makes in one call


@dataclass(frozen=True)
class Recipe:
    """The content of a database.

    Args:
        name: of the data set.
        source: its images.
        transforms: of the copies, torchvision's name -> arguments.
        seed: of a run whose augmentation, step by step, would make the same copies.
        rounds: copies of each sample.
        first_round_clean: whether the copies of round 0 are the unchanged images.
        key: the setting that holds ``transforms``, for messages.
    """

    name: str
    source: ImageSet
    transforms: Mapping[str, Any]
    seed: int
    rounds: int = 1
    first_round_clean: bool = False
    key: str = "data.db.augmentations_train"

    def copies(self, ids: Tensor, number: int) -> Tensor:
        """Return the copies of the samples ``ids`` (int64 [n]) in the round ``number``, uint8 [n, C, H, W]."""
        if number == 0 and self.first_round_clean:
            return self.source.images.fetch(ids)
        augmentation = Augmentation(self.transforms, augmentation_seed(self.seed), self.key)
        reader, batch_transforms = reader_of(self.source.images, augmentation)
        images = reader.read(ids, number)
        return images if batch_transforms is None else batch_transforms(images, ids, number)

    def manifest(self) -> Manifest:
        """Return the manifest of the database; ``ValueError`` where the transforms do not fit the images."""
        first = torch.zeros(1, dtype=torch.int64)
        shapes = {tuple(self.copies(first, number).shape[1:]) for number in range(min(self.rounds, 2))}
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
        return cast(Manifest, json.loads(json.dumps(manifest)))  # as it is read back: tuples are lists


def pieces(recipe: Recipe, present: np.ndarray, size: int, *, shuffle: bool) -> list[tuple[Tensor, int]]:
    """Return the missing copies as (sample ids, round), up to ``size`` samples of one round in each entry.

    Args:
        recipe: of the copies.
        present: bool [rounds, samples], the copies that exist.
        size: samples per entry.
        shuffle: whether the samples of each round come in an order of its own, drawn with the recipe's seed.
    """
    result = []
    for number in range(recipe.rounds):
        ids = torch.arange(len(recipe.source))
        if shuffle:
            ids = ids[torch.argsort(random_bits(ids, recipe.seed, _ORDER, number), stable=True)]
        missing = ids[~torch.from_numpy(present[number])[ids]]
        result += [(part, number) for part in missing.split(size) if len(part)]
    return result


def make_records(
    recipe: Recipe, work: Sequence[tuple[Tensor, int]], num_workers: int
) -> Generator[list[tuple[bytes, bytes]], None, None]:
    """Yield the records of each entry (sample ids, round) of ``work``; ``num_workers`` = 0: made by this process."""
    loader: DataLoader[Any] = DataLoader(
        WorkerTask(recipe.copies),
        batch_size=None,
        sampler=work,
        num_workers=min(num_workers, len(work)),
        generator=torch.Generator(),  # else the global generator would be drawn from
    )
    for (ids, number), copies in zip(work, worker_results(loader), strict=True):
        labels = recipe.source.labels[ids].tolist()
        values = (encode(label, image) for label, image in zip(labels, copies.numpy(), strict=True))
        yield list(zip(pack_keys(np.full(len(ids), number), ids.numpy()), values, strict=True))
