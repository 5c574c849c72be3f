"""Flatness: the distance at which the loss exceeds a threshold, and the largest increase of the loss nearby."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fullbatch.objective.arguments import accepts_data
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.means import NO_SAMPLES
from fullbatch.tensors import global_norm, parameters_at, preserved, scaled_sum, trainable
from fullbatch.typing import Tensors


@dataclass(frozen=True)
class Flatness:
    """The distance moved along each of several directions until the loss exceeds the threshold."""

    distances: list[float]
    """For a direction along which it never did, the farthest distance tried, a lower bound."""
    num_open: int
    """Number of these directions."""

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


@accepts_data
def flatness(
    objective: FullBatchObjective,
    directions: Sequence[Tensors],
    *,
    step_size: float = 0.1,
    threshold: float = 1.0,
    max_steps: int = 100,
) -> Flatness:
    """Return, for each direction, the first multiple of ``step_size`` at which L exceeds ``threshold``.

    L is evaluated at t + k step_size d, k = 0, 1, ..., ``max_steps``, so a distance is in units of the length of d. It
    is 0 where the loss at t exceeds the threshold already. A loss of NaN exceeds it. The model is used in its current
    mode and restored bitwise.

    Args:
        objective: L on its data; ``model, loss_fn, data`` (and ``sub_batch=``) may be given in its place.
        directions: d, each shaped like the trainable parameters.
        step_size: distance between evaluations.
        threshold: of L.
        max_steps: number of evaluations along each direction at most.

    Raises:
        ValueError: no direction, or a step size that is not positive.
    """
    if not directions or not step_size > 0:
        raise ValueError("flatness: requires directions and a step_size greater than 0")
    start = [p.detach().clone() for p in trainable(objective.model)]
    if not _loss_at(objective, start) <= threshold:
        return Flatness([0.0] * len(directions), 0)
    distances, num_open = [], 0
    for direction in directions:
        for k in range(1, max_steps + 1):
            if not _loss_at(objective, scaled_sum(start, direction, k * step_size)) <= threshold:
                distances.append(step_size * k)
                break
        else:
            distances.append(step_size * max_steps)
            num_open += 1
    return Flatness(distances, num_open)


def _loss_at(objective: FullBatchObjective, values: Tensors) -> float:
    with parameters_at(objective.model, values):
        return float(objective.loss().loss)


@accepts_data
def worst_case(objective: FullBatchObjective, rho: float) -> float:
    """Return L(t + rho g/||g||) - L(t), the largest increase in a ball to first order (Foret et al., 2021).

    ``model, loss_fn, data`` may be given in place of ``objective``.
    """
    evaluation = objective.evaluate()
    perturbed = _ascend(trainable(objective.model), evaluation.gradient, rho)
    return _loss_at(objective, perturbed) - float(evaluation.loss)


@accepts_data
def m_sharpness(objective: FullBatchObjective, rho: float) -> float:
    """Return the mean over sub-batches, weighted by size, of l_b(t + rho g_b/||g_b||) - l_b(t).

    This is the sharpness of SAM with one perturbation for each m samples (Foret et al., 2021, section 4.1), m the size
    of the objective's sub-batches. The model is restored bitwise. ``model, loss_fn, data`` may be given in place of
    ``objective``.
    """
    evaluate, model = objective.sub_batch_objective, objective.model
    increases, sizes = [], []
    with preserved(list(model.buffers())):
        for block in objective.sub_batches():
            evaluation = evaluate.plain().gradient(block)
            with parameters_at(model, _ascend(trainable(model), evaluation.gradient, rho)):
                increases.append(evaluate.loss(block).loss - evaluation.loss)
            sizes.append(len(block.labels) // objective.copies)
    values = torch.stack(increases) if increases else trainable(model)[0].new_zeros(0)
    weights = values.new_tensor(sizes)
    sums = [(values * weights).sum(), weights.sum()]
    objective.reduce(sums)
    if not increases and not sums[1]:
        raise ValueError(NO_SAMPLES)
    return float(sums[0] / sums[1])


def _ascend(parameters: Tensors, gradient: Tensors, rho: float) -> list[Tensor]:
    return scaled_sum(parameters, gradient, rho / (global_norm(gradient) + 1e-12))
