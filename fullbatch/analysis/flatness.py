"""How far one can go before the loss rises, and how much it rises close by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.tensors import global_norm, parameters_at, preserved, scaled_sum, trainable
from fullbatch.typing import Tensors


@dataclass(frozen=True)
class Flatness:
    """The distance moved along each of several directions until the loss exceeds the threshold."""

    distances: list[float]
    """Of a direction along which it never did, the farthest distance that was tried: a lower bound."""
    num_open: int
    """How many of these there are."""

    @property
    def mean(self) -> float:
        """The mean over the directions."""
        return sum(self.distances) / len(self.distances)

    @property
    def std(self) -> float:
        """The unbiased standard deviation over the directions; NaN for a single one."""
        if len(self.distances) < 2:
            return math.nan
        squares = sum((distance - self.mean) ** 2 for distance in self.distances)
        return math.sqrt(squares / (len(self.distances) - 1))


def flatness(
    objective: FullBatchObjective,
    directions: Sequence[Tensors],
    *,
    step_size: float = 0.1,
    threshold: float = 1.0,
    max_steps: int = 100,
) -> Flatness:
    """Return the distance at the first multiple of ``step_size`` where L exceeds ``threshold``, for each direction.

    The parameters are t + k step_size d, k = 0, 1, ..., ``max_steps``, so a distance is in units of the direction's
    length; 0 where the loss at t exceeds the threshold already. A loss that is not a number exceeds it. The model is
    used in the mode in which it is, and comes back bitwise.

    Raises:
        ValueError: no direction, or a step size that is not positive.
    """
    if not directions or not step_size > 0:
        raise ValueError("flatness: needs directions, and a step_size greater than 0")
    start = [p.detach().clone() for p in trainable(objective.model)]
    if not _loss_at(objective, start) <= threshold:
        return Flatness([0.0] * len(directions), 0)
    reached = [_first_step(objective, start, direction, step_size, threshold, max_steps) for direction in directions]
    distances = [step_size * (max_steps if k is None else k) for k in reached]
    return Flatness(distances, sum(k is None for k in reached))


def _first_step(
    objective: FullBatchObjective, start: Tensors, direction: Tensors, size: float, threshold: float, max_steps: int
) -> int | None:
    for k in range(1, max_steps + 1):
        if not _loss_at(objective, scaled_sum(start, direction, k * size)) <= threshold:
            return k
    return None


def _loss_at(objective: FullBatchObjective, values: Tensors) -> float:
    with parameters_at(objective.model, values):
        return float(objective.loss().loss)


def worst_case(objective: FullBatchObjective, rho: float) -> float:
    """Return L(t + rho g/||g||) - L(t): the rise at the worst point of a ball, to first order (Foret et al., 2021)."""
    found = objective.evaluate()
    moved = _towards(found.gradient, trainable(objective.model), rho)
    return _loss_at(objective, moved) - float(found.loss)


def m_sharpness(objective: FullBatchObjective, rho: float) -> float:
    """Return the mean over sub-batches, weighted by size, of l_b(t + rho g_b/||g_b||) - l_b(t), without a trace.

    The sharpness that SAM sees when its perturbation is one for each m samples (Foret et al., 2021, section 4.1), m
    the size of the objective's sub-batches.
    """
    evaluate, model = objective.block_objective, objective.model
    rises, sizes = [], []
    with preserved(list(model.buffers())):
        for block in objective.sub_batches():
            found = evaluate.gradient(block, plain=True)
            with parameters_at(model, _towards(found.gradient, trainable(model), rho)):
                rises.append(evaluate.loss(block).loss - found.loss)
            sizes.append(len(block.labels) // objective.copies)
    weights = rises[0].new_tensor(sizes)
    sums = [(torch.stack(rises) * weights).sum(), weights.sum()]
    objective.reduce(sums)
    return float(sums[0] / sums[1])


def _towards(gradient: Tensors, parameters: Tensors, rho: float) -> list[Tensor]:
    return scaled_sum(parameters, gradient, rho / (global_norm(gradient) + 1e-12))
