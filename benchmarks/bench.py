"""Images, with the models, loaders and objectives that are measured on them."""

import argparse
from typing import Any

import torch
from baseline import CLASSES, MEAN, STD, Loop, random_images
from timing import Case
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch import FullBatchObjective, build_model
from fullbatch.data.augmentation import Augmentation
from fullbatch.data.dataset import ImageSet, TensorImages
from fullbatch.data.loader import BlockFormat, BlockLoader, ReadOptions

AUGMENTATIONS = {"RandomCrop": [32, 4], "RandomHorizontalFlip": 0.5}


class Bench:
    """Images (uint8 [N, C, H, W], random by default) with labels, and everything that is built for them.

    ``facts`` holds results by name that are not timings: memory, and rates of the device.
    """

    def __init__(
        self, options: argparse.Namespace, device: torch.device, images: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.options, self.device, self.turns = options, device, options.turns
        self.images, self.labels = images or random_images(options.samples)
        self.facts: dict[str, float] = {}

    def model(self, name: str, memory_format: torch.memory_format = torch.contiguous_format) -> nn.Module:
        torch.manual_seed(0)
        _, channels, pixels, _ = self.images.shape
        model = build_model(name, channels=channels, classes=CLASSES, pixels=pixels)
        return model.to(self.device, memory_format=memory_format)

    def loader(
        self,
        batch_size: int,
        *,
        augmented: bool = True,
        samples: int | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> BlockLoader:
        """Return a loader of all images, or of ``samples`` of them, repeated if there are fewer."""
        ids = torch.arange(samples or len(self.labels)) % len(self.labels)
        return BlockLoader(
            ImageSet(TensorImages(self.images[ids]), self.labels[ids], tuple("0123456789")),
            batch_size=batch_size,
            format=BlockFormat([MEAN], [STD], self.device, memory_format=memory_format),
            augmentation=Augmentation(AUGMENTATIONS, 0) if augmented else None,
            reading=ReadOptions(caching="device"),
        )

    def block(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of one full block, in which images are repeated if there are fewer."""
        inputs, labels, _ = next(iter(self.loader(batch_size, samples=batch_size).blocks(0)))
        return inputs, labels

    def loop(self, model: str, batch_size: int, **options: bool) -> Loop:
        """Return the work of the plain loop on the same images."""
        samples, device, workers = len(self.labels), str(self.device), self.options.workers
        return Loop(model, batch_size, samples, device, torch.get_num_threads(), workers, **options)

    def objective(self, model: nn.Module, data: Any, **options: Any) -> FullBatchObjective:
        return FullBatchObjective(model, F.cross_entropy, data, **options)

    def case(self, name: str, run: Any, samples: int | None = None, **options: Any) -> Case:
        return Case(name, run, len(self.labels) if samples is None else samples, **options)
