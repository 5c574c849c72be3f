"""What an evaluation costs in floating-point operations, counted operator by operator."""

from dataclasses import dataclass

from torch.utils.flop_counter import FlopCounterMode

from fullbatch.objective.full_batch import Data, FullBatchObjective
from fullbatch.objective.uncompiled import uncompiled


@dataclass(frozen=True)
class Flops:
    """Operations a sample, a multiplication and an addition counted as two; products and convolutions alone."""

    gradient: float
    """Of one gradient evaluation; a regularizer takes more than one of them."""
    loss: float
    """Of one loss by a forward pass."""


def count_flops(objective: FullBatchObjective, data: Data) -> Flops:
    """Count the operations of ``objective`` on ``data``, of which one small block is enough.

    Evaluates there without a trace: parameters, buffers and random states come back bitwise. A compiled model is
    counted as it is without compilation, since compiled code cannot be looked into.
    """
    there = objective.over(data)
    with uncompiled():
        with FlopCounterMode(display=False) as of_gradient:
            evaluation = there.evaluate()
        with FlopCounterMode(display=False) as of_loss:
            samples = float(there.loss().num_samples)
    gradients = evaluation.evaluations * samples
    return Flops(of_gradient.get_total_flops() / gradients, of_loss.get_total_flops() / samples)
