"""Curvature of an objective on all its data as matrix-vector products."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fullbatch.analysis.eigenvalues import Operator
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gauss_newton import gauss_newton_product
from fullbatch.objective.means import WeightedMean
from fullbatch.tensors import flatten, preserved, trainable, unflatten
from fullbatch.typing import Tensors

Product = Callable[[FullBatchObjective, Tensors], list[Tensor]]


def hessian(objective: FullBatchObjective, v: Tensors) -> list[Tensor]:
    """Return the exact product H v with the Hessian of L."""
    return objective.hessian_product(v)


def central_differences(objective: FullBatchObjective, v: Tensors) -> list[Tensor]:
    """Return H v by central differences of gradients, which needs no second derivatives of the model's operations."""
    return objective.hessian_product(v, "central-differences")


def gauss_newton(objective: FullBatchObjective, v: Tensors) -> list[Tensor]:
    """Return the mean over sub-batches of J' H_z J v; see ``fullbatch.objective.gauss_newton``."""
    mean = WeightedMean(v, objective.arithmetic.accumulation_dtype)
    with preserved(list(objective.model.buffers())):
        for block in objective.sub_batches():
            with objective.sub_batch_objective.naming(block, "product"):
                product = gauss_newton_product(objective.sub_batch_objective.point(block), v)
            mean.add(product, len(block.labels) // objective.copies)
    objective.reduce(mean.tensors)
    return mean.value()


MATRICES: dict[str, Product] = {
    "hessian": hessian,
    "gauss-newton": gauss_newton,
    "central-differences": central_differences,
}


def curvature(
    objective: FullBatchObjective,
    *,
    matrix: str = "hessian",
    weight_decay: float | Sequence[float] = 0.0,
    preconditioner: Tensors | None = None,
) -> Operator:
    """Return the curvature A of L + weight_decay/2 ||t||^2 as an operator on flat vectors.

    Args:
        objective: L on its data, with the model in its current mode. A regularizer is ignored.
        matrix: hessian, gauss-newton, or central-differences (the Hessian without second derivatives), in any case.
        weight_decay: of all trainable parameters, or a list of one number for each of them.
        preconditioner: P, diagonal and positive, shaped like the parameters: the operator is P^-1/2 A P^-1/2.

    Raises:
        ValueError: an unknown matrix.
    """
    if matrix.lower() not in MATRICES:
        raise ValueError(f"matrix={matrix}: unknown; known: {', '.join(MATRICES)}")
    product, parameters = MATRICES[matrix.lower()], trainable(objective.model)
    if not parameters:
        raise ValueError("model: no parameter requires a gradient; expected at least one")
    factors = None if preconditioner is None else flatten(preconditioner).rsqrt()
    decays = [weight_decay] * len(parameters) if isinstance(weight_decay, int | float) else list(weight_decay)

    @torch.no_grad()
    def multiply(v: Tensor) -> Tensor:
        inner = v if factors is None else factors * v
        pieces = unflatten(inner, parameters)
        with torch.enable_grad():
            outer = product(objective, pieces)
        result = flatten([a + decay * p if decay else a for a, p, decay in zip(outer, pieces, decays, strict=True)])
        return result if factors is None else factors * result

    like = parameters[0].detach().new_empty(0)
    return Operator(sum(p.numel() for p in parameters), multiply, like)
