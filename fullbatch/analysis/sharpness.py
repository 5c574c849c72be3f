"""Sharpness, trace and spectral density of the curvature of the exact objective, for any module and data."""

from dataclasses import dataclass

from torch import Tensor, nn

from fullbatch.analysis import spectrum
from fullbatch.analysis.eigenvalues import Eigenpairs, largest_eigenpairs
from fullbatch.analysis.operators import curvature
from fullbatch.analysis.spectrum import SpectralDensity, Trace, trace
from fullbatch.objective.full_batch import Data, FullBatchObjective
from fullbatch.tensors import trainable, unflatten
from fullbatch.typing import LossFunction


@dataclass(frozen=True)
class Sharpness:
    """The largest eigenvalues of the curvature with their error and cost."""

    eigenvalues: list[float]
    """In descending order; the first is the sharpness."""
    eigenvectors: list[list[Tensor]]
    """Orthonormal, each shaped like the trainable parameters."""
    matvecs: int
    """Curvature-vector products with all the data."""
    error: float
    """Largest estimated error of an eigenvalue, relative to the largest magnitude."""
    converged: bool
    """Whether the error is within the tolerance."""
    pairs: Eigenpairs
    """The same as flat vectors, and the start of a later call."""

    @property
    def value(self) -> float:
        """The sharpness."""
        return self.eigenvalues[0]


def sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    *,
    top_k: int = 1,
    tolerance: float = 1e-3,
    matrix: str = "hessian",
    weight_decay: float = 0.0,
    sub_batch: int | None = None,
    max_matvecs: int = 1000,
    start: Sharpness | None = None,
    seed: int = 0,
) -> Sharpness:
    """Return the largest eigenvalues of the curvature of L + weight_decay/2 ||t||^2 over all the data.

    The model is used in its current mode and restored bitwise: in training mode, batch norm uses the statistics of its
    sub-batch and keeps its buffers.

    Args:
        model: any module.
        loss_fn: (outputs, labels) -> mean loss of a sub-batch.
        data: blocks of (inputs, labels), the same in every iteration; see ``FullBatchObjective``.
        top_k: number of eigenvalues.
        tolerance: accepted error, relative to the largest magnitude.
        matrix: hessian, gauss-newton, or central-differences (of gradients, for a model without second derivatives).
        weight_decay: added to all eigenvalues.
        sub_batch: largest number of samples in a forward pass (about); None: the blocks of the data.
        max_matvecs: largest number of products; it then returns without having converged.
        start: the result of an earlier call for similar parameters; saves most of the products.
        seed: of the random start.

    Raises:
        ValueError: top_k is not in 1..number of parameters, the tolerance is not positive, or the matrix is unknown.
    """
    objective = FullBatchObjective(model, loss_fn, data, sub_batch=sub_batch)
    operator = curvature(objective, matrix=matrix, weight_decay=weight_decay)
    pairs = largest_eigenpairs(
        operator,
        top_k,
        tolerance=tolerance,
        max_matvecs=max_matvecs,
        start=None if start is None else start.pairs.memory,
        seed=seed,
    )
    vectors = [unflatten(vector, trainable(model)) for vector in pairs.vectors]
    return Sharpness(pairs.values.tolist(), vectors, pairs.matvecs, pairs.error, pairs.converged, pairs)


def hessian_trace(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    *,
    num_matvecs: int = 90,
    matrix: str = "hessian",
    sub_batch: int | None = None,
    seed: int = 0,
) -> Trace:
    """Estimate the trace of the curvature of L; see ``fullbatch.analysis.spectrum.trace``."""
    operator = curvature(FullBatchObjective(model, loss_fn, data, sub_batch=sub_batch), matrix=matrix)
    return trace(operator, num_matvecs, seed)


def spectral_density(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    *,
    num_vectors: int = 1,
    num_steps: int = 80,
    matrix: str = "hessian",
    sub_batch: int | None = None,
    seed: int = 0,
) -> SpectralDensity:
    """Estimate the density of the curvature's eigenvalues; see ``fullbatch.analysis.spectrum.spectral_density``."""
    operator = curvature(FullBatchObjective(model, loss_fn, data, sub_batch=sub_batch), matrix=matrix)
    return spectrum.spectral_density(operator, num_vectors, num_steps, seed)
