"""Losses of a sub-batch: a loss for every sample, then a reduction of the samples' losses to one number.

l_i is the loss of sample i, outputs are [B, C], labels are class indices [B], every loss is a scalar.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SampleLoss = Callable[[Tensor, Tensor], Tensor]
Reduction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """``reduction(per_sample(outputs, labels))`` in at least single precision."""

    per_sample: SampleLoss
    reduction: Reduction

    @property
    def copies(self) -> int:
        """The number of consecutive rows of a sub-batch that belong to one sample."""
        return getattr(self.reduction, "copies", 1)

    @property
    def check_mean(self) -> bool:
        """Whether an objective tests that this is a mean over samples: not with a reduction of this module.

        Those are means, except for ``maximum``, which depends on the sub-batches by design.
        """
        ours = self.reduction in (mean, mean_of_incorrect, maximum) or isinstance(self.reduction, MeanOfMaxima)
        return not (ours and isinstance(self.per_sample, CrossEntropy | SquaredDistance))

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the sub-batch."""
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return self.reduction(self.per_sample(outputs, labels), outputs, labels)


@dataclass(frozen=True)
class CrossEntropy:
    """l_i = -(1-e) log p_y - e/(C-1) sum_{c != y} log p_c, the cross-entropy with label smoothing e."""

    label_smoothing: float = 0.0

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the losses [B]."""
        if self.label_smoothing == 0:
            return F.cross_entropy(outputs, labels, reduction="none")
        log_probabilities = F.log_softmax(outputs, dim=1)
        true = log_probabilities.gather(1, labels[:, None]).squeeze(1)
        others = (log_probabilities.sum(dim=1) - true) / (outputs.shape[1] - 1)
        return -(1 - self.label_smoothing) * true - self.label_smoothing * others


@dataclass(frozen=True)
class SquaredDistance:
    """l_i = 1/2 ||outputs_i - target_i||^2; the target is one-hot, smoothed by e as in ``CrossEntropy``."""

    label_smoothing: float = 0.0

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the losses [B]."""
        classes = outputs.shape[1]
        one_hot = F.one_hot(labels, classes).to(outputs.dtype)
        other = self.label_smoothing / (classes - 1)
        target = other + (1 - self.label_smoothing - other) * one_hot
        return (outputs - target).square().sum(dim=1) / 2


def mean(losses: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over the samples."""
    return losses.mean()


def mean_of_incorrect(losses: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over all samples, in which a correctly classified sample counts as zero (`incorrect-xent`)."""
    return (losses * (outputs.argmax(dim=1) != labels)).mean()


def maximum(losses: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the largest loss of the sub-batch (`batch-maxup`)."""
    return losses.max()


@dataclass(frozen=True)
class MeanOfMaxima:
    """Mean over samples of the largest loss among a sample's K consecutive copies (`maxup-K`; Gong et al., 2020)."""

    copies: int

    def __call__(self, losses: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss; the number of rows must be a multiple of K."""
        return losses.view(-1, self.copies).amax(dim=1).mean()


def loss_function(modification: str | None = None, label_smoothing: float = 0.0) -> Loss:
    """Return the loss by its name: None (cross-entropy), incorrect-xent, batch-maxup, maxup-K or squared.

    Raises ``ValueError`` on any other name; names are case-insensitive.
    """
    cross_entropy = CrossEntropy(label_smoothing)
    table: dict[str | None, Loss] = {
        None: Loss(cross_entropy, mean),
        "incorrect-xent": Loss(cross_entropy, mean_of_incorrect),
        "batch-maxup": Loss(cross_entropy, maximum),
        "squared": Loss(SquaredDistance(label_smoothing), mean),
    }
    name = modification.lower() if modification else None
    if name in table:
        return table[name]
    if match := re.fullmatch(r"maxup-([1-9]\d*)", name or ""):
        return Loss(cross_entropy, MeanOfMaxima(int(match[1])))
    known = ", ".join(str(key) for key in table if key)
    raise ValueError(f"unknown loss modification {modification!r}; known: {known}, maxup-K (K a number)")
