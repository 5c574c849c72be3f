"""The cost of an evaluation in floating-point operations, counted operator by operator."""

from dataclasses import dataclass

from fullbatch.objective.blocks import Data
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.uncompiled import uncompiled


@dataclass(frozen=True)
class Flops:
    """Operations per sample of matrix products and convolutions; a multiply-add counts as two."""

    gradient: float
    """Per gradient evaluation; a regularized gradient takes several."""
    loss: float
    """Per forward pass."""


def count_flops(objective: FullBatchObjective, data: Data) -> Flops:
    """Count the operations of ``objective`` on ``data``, of which one small block is enough.

    Parameters, buffers and random states are unchanged afterwards. A compiled model is counted uncompiled, since the
    operators inside compiled code cannot be counted.
    """
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 (slow to import)

    part = objective.over(data)
    with uncompiled():
        with FlopCounterMode(display=False) as of_gradient:
            evaluation = part.evaluate()
        with FlopCounterMode(display=False) as of_loss:
            samples = float(part.loss().num_samples)
    gradients = evaluation.evaluations * samples
    return Flops(of_gradient.get_total_flops() / gradients, of_loss.get_total_flops() / samples)
