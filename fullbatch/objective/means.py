"""Averages over sub-batches that arrive one after the other."""

from collections.abc import Callable

import torch
from torch import Tensor

from fullbatch.tensors import add_, add_products_, added, scale_, scaled, zeros_like
from fullbatch.typing import Tensors

NO_SAMPLES = "data: no process has any samples; expected at least one (inputs, labels) pair"


class WeightedMean:
    """The mean sum_b w_b x_b / sum_b w_b of lists of tensors, accumulated in ``dtype`` where that is more precise."""

    def __init__(self, like: Tensors, dtype: torch.dtype | None = None) -> None:
        self._sums = zeros_like(like, dtype)
        self._dtypes = [tensor.dtype for tensor in like]
        self.weight = torch.zeros((), dtype=self._sums[0].dtype, device=like[0].device)
        """The sum of the weights so far."""
        self._is_empty = True

    @torch.no_grad()
    def add(self, values: Tensors, weight: float) -> None:
        """Add one observation with its weight."""
        self._is_empty = False
        add_(self._sums, values, alpha=weight)
        self.weight += weight

    @property
    def tensors(self) -> list[Tensor]:
        """All sums: those of several parts of the data, added up, are those of the whole."""
        return [*self._sums, self.weight]

    @torch.no_grad()
    def value(self) -> list[Tensor]:
        """Return the mean in the dtypes of the observations; the sums cannot be used afterwards.

        Raises ``ValueError`` if neither this process nor those whose sums were added have an observation.
        """
        if self._is_empty and not self.weight:
            raise ValueError(NO_SAMPLES)
        scale_(self._sums, 1 / self.weight)
        return [total.to(dtype) for total, dtype in zip(self._sums, self._dtypes, strict=True)]


class MovingAverage:
    """avg <- avg + (x - avg)/n over n observations in order, from zero; weights are ignored.

    For a constant x the result is (1 - (1 - 1/n)^n) x, about 0.63 x: the average of the paper's first code.
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
        """The average so far; averages of several parts cannot be combined, since the order matters."""
        return self._average

    def value(self) -> list[Tensor]:
        """Return the average in the dtypes of the observations."""
        return [average.to(dtype) for average, dtype in zip(self._average, self._dtypes, strict=True)]


class Welford:
    """Mean and spread of lists of tensors in one pass (Welford, 1962; with weights: West, 1979).

    With weights w_b, W = sum_b w_b and m = sum_b w_b x_b / W, the spread is, entry by entry, sum_b w_b (x_b - m)^2 / W:
    accumulated without the cancellation of a difference of squares.
    """

    def __init__(self, like: Tensors, dtype: torch.dtype | None = None) -> None:
        self._mean, self._squares = zeros_like(like, dtype), zeros_like(like, dtype)
        self.weight, self.count = 0.0, 0
        """The sum of the weights and the number of observations so far."""

    @torch.no_grad()
    def add(self, values: Tensors, weight: float) -> None:
        """Add one observation with its weight."""
        self.weight, self.count = self.weight + weight, self.count + 1
        share = weight / self.weight
        deviation = added(self._mean, values, -1.0)
        add_(self._mean, deviation, alpha=-share)
        add_products_(self._squares, deviation, deviation, weight * (1 - share))

    @torch.no_grad()
    def value(self, reduce: Callable[[Tensors], None] | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Return mean and spread; the sums cannot be used afterwards.

        ``reduce`` adds sums, weights and counts of several processes up in place; all must call this together.
        """
        if reduce is not None:
            self._merge(reduce)
        scale_(self._squares, 1 / self.weight)
        return self._mean, self._squares

    def _merge(self, reduce: Callable[[Tensors], None]) -> None:
        total = scaled(self._mean, self.weight)
        sums = self._mean[0].new_tensor([self.weight, self.count], dtype=torch.float64)
        reduce([*total, sums])
        weight, count = sums.tolist()
        if weight == 0:
            raise ValueError(NO_SAMPLES)
        scale_(total, 1 / weight)
        deviation = added(self._mean, total, -1.0)
        add_products_(self._squares, deviation, deviation, self.weight)
        reduce(self._squares)
        self._mean, self.weight, self.count = total, weight, round(count)
