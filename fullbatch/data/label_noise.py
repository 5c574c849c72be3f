"""Label noise: a fraction of the training labels is replaced, the same ones in every step and every run of a seed.

The label of sample i is replaced if u(seed, i) < fraction, u uniform in [0, 1), by one of the other classes, each
equally likely. Both draws are functions of (seed, i) alone. So the noise of a sample does not depend on the other
samples, and a larger fraction replaces all labels that a smaller one does. The share of replaced labels has the
standard deviation sqrt(fraction (1 - fraction) / N) around the fraction.
"""

from dataclasses import replace

import torch
from torch import Tensor

from fullbatch.data.images import ImageData
from fullbatch.randomness import random_integers, random_uniform

_WHETHER, _WHICH = 0, 1  # streams of the seed


def noisy_labels(labels: Tensor, num_classes: int, fraction: float, seed: int) -> Tensor:
    """Return ``labels`` (int64 [N]) with about ``fraction`` of them replaced."""
    ids = torch.arange(len(labels))
    replaced = random_uniform(ids, seed, _WHETHER) < fraction
    shift = 1 + random_integers(ids, num_classes - 1, seed, _WHICH)
    return torch.where(replaced, (labels + shift) % num_classes, labels)


def with_label_noise(data: ImageData, fraction: float, seed: int) -> ImageData:
    """Return the data with noise in the training labels; the validation labels are unchanged."""
    labels = noisy_labels(data.train.labels, len(data.classes), fraction, seed)
    return replace(data, train=replace(data.train, labels=labels))
