"""Averages over sub-batches that arrive one after the other."""

import torch
from torch import Tensor

from fullbatch.tensors import add_, scale_, zeros_like
from fullbatch.typing import Tensors


class WeightedMean:
    """The mean sum_b w_b x_b / sum_b w_b of lists of tensors, accumulated in ``dtype`` where that is more precise."""

    def __init__(self, like: Tensors, dtype: torch.dtype | None = None) -> None:
        self._sums = zeros_like(like, dtype)
        self._dtypes = [tensor.dtype for tensor in like]
        self.weight = torch.zeros((), dtype=self._sums[0].dtype, device=like[0].device)
        """The sum of the weights so far."""

    @torch.no_grad()
    def add(self, values: Tensors, weight: float) -> None:
        """Add one observation with its weight."""
        add_(self._sums, values, alpha=weight)
        self.weight += weight

    @property
    def tensors(self) -> list[Tensor]:
        """All that has been added up: those of several parts of the data, added, are those of the whole."""
        return [*self._sums, self.weight]

    @torch.no_grad()
    def value(self) -> list[Tensor]:
        """Return the mean in the dtypes of the observations; this uses the sums up."""
        scale_(self._sums, 1 / self.weight)
        return [total.to(dtype) for total, dtype in zip(self._sums, self._dtypes, strict=True)]


class MovingAverage:
    """avg <- avg + (x - avg)/n over n observations in order, from zero; weights are ignored.

    For a constant x the result is (1 - (1 - 1/n)^n) x, about 0.63 x: what the paper's code first accumulated.
    """

    def __init__(self, like: Tensors, num_observations: int, dtype: torch.dtype | None = None) -> None:
        self._average = zeros_like(like, dtype)
        self._dtypes = [tensor.dtype for tensor in like]
        self._num_observations = num_observations

    @torch.no_grad()
    def add(self, values: Tensors, weight: float) -> None:
        """Add one observation."""
        scale_(self._average, 1 - 1 / self._num_observations)
        add_(self._average, values, alpha=1 / self._num_observations)

    @property
    def tensors(self) -> list[Tensor]:
        """The average so far; those of several parts of the data are no use, since the order matters."""
        return self._average

    def value(self) -> list[Tensor]:
        """Return the average in the dtypes of the observations."""
        return [average.to(dtype) for average, dtype in zip(self._average, self._dtypes, strict=True)]
