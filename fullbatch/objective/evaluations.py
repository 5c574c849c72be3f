"""Results of evaluating an objective."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossEvaluation:
    """Result of one evaluation: scalar tensors on the device, so that nothing waits for them."""

    loss: Tensor
    """L, without any regularizer."""
    accuracy: Tensor
    """Share of the samples whose largest output is the label's."""
    num_samples: Tensor
    """N."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(LossEvaluation):
    """Loss and gradient."""

    gradient: list[Tensor]
    """g, shaped like the trainable parameters; regularized and clipped per sub-batch as the objective is configured."""
    squared_norms: Tensor
    """sum_b n_b/N ||g_b||^2, before regularizer and clip."""
    penalty: Tensor
    """The value of the regularizer, whose gradient is part of ``gradient``."""
    num_clipped: Tensor
    """The number of sub-batch gradients that ``batch_clip`` scaled down."""
    evaluations: int
    """The number of gradient evaluations over all the data, the regularizer's included."""


@dataclass(frozen=True, kw_only=True)
class ValueEvaluation(LossEvaluation):
    """The value of the regularized objective."""

    penalty: Tensor
    """The value of the regularizer; the objective is ``loss + penalty``."""
    evaluations: int
    """The number of gradient evaluations for the penalty; 0 where forward passes are enough."""
