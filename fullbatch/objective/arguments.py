"""Arguments of functions that measure an objective: the objective itself, or the model, the loss and the data."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer

Result = TypeVar("Result")


def accepts_data(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let a function whose first argument is an objective also take ``model, loss_fn, data`` in its place.

    So ``function(objective, ...)`` and ``function(model, loss_fn, data, ...)`` are the same for the objective
    ``FullBatchObjective(model, loss_fn, data)``. Both take the keyword ``sub_batch``; the second takes ``regularizer``
    and ``mixed_precision`` (False, True for the device's low precision, or a dtype of ``torch.autocast``), too.

    Raises:
        ValueError: arguments are missing, or are those of both.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Result:
        options = {name: kwargs.pop(name) for name in ("sub_batch", "regularizer", "mixed_precision") if name in kwargs}
        remaining = list(args)
        is_objective = "objective" in kwargs or isinstance(next(iter(args), None), FullBatchObjective)
        names = ["objective"] if is_objective else ["model", "loss_fn", "data"]
        missing = [name for name in names if name not in kwargs]
        if len(remaining) < len(missing):
            raise ValueError(f"{function.__name__}: expected a FullBatchObjective, or model, loss_fn and data")
        given = [kwargs.pop(name) if name in kwargs else remaining.pop(0) for name in names]
        if is_objective and len(options) > ("sub_batch" in options):
            raise ValueError(f"{function.__name__}: {', '.join(options)}: the objective that is given has its own")
        if is_objective:
            objective = given[0].over(given[0].data, **options) if options else given[0]
        else:
            objective = _objective_of(*given, **options)
        return function(objective, *remaining, **kwargs)

    return call


def _objective_of(
    model: Any,
    loss_fn: Any,
    data: Any,
    sub_batch: int | None = None,
    regularizer: GradRegularizer | None = None,
    mixed_precision: bool | torch.dtype = False,
) -> FullBatchObjective:
    # the penalty's gradients are scaled as the regularizer scales its own
    scale = 1.0 if regularizer is None else regularizer.arithmetic.loss_scale
    arithmetic = Arithmetic(autocast=mixed_precision, loss_scale=scale)
    return FullBatchObjective(model, loss_fn, data, sub_batch=sub_batch, regularizer=regularizer, arithmetic=arithmetic)
