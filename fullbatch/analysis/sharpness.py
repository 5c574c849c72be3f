"""Sharpness, trace and spectral density of the curvature of the exact objective, for any module and data."""

from dataclasses import dataclass

from torch import Tensor

from fullbatch.analysis import spectrum
from fullbatch.analysis.eigenvalues import Eigenpairs, largest_eigenpairs
from fullbatch.analysis.operators import curvature
from fullbatch.analysis.spectrum import SpectralDensity, Trace, trace
from fullbatch.objective.arguments import accepts_data
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.tensors import trainable, unflatten


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


@accepts_data
def sharpness(
    objective: FullBatchObjective,
    *,
    top_k: int = 1,
    tolerance: float = 1e-3,
    matrix: str = "hessian",
    weight_decay: float = 0.0,
    max_matvecs: int = 1000,
    start: Sharpness | None = None,
    seed: int = 0,
) -> Sharpness:
    """Return the largest eigenvalues of the curvature of L + weight_decay/2 ||t||^2 over all the data.

    The model is used in its current mode and restored bitwise: in training mode, batch norm uses the statistics of its
    sub-batch and keeps its buffers. A regularizer is no part of L.

    Args:
        objective: L on its data; ``model, loss_fn, data`` (and ``sub_batch=``) may be given in its place, for any
            module, a mean loss, and data as in ``FullBatchObjective``.
        top_k: number of eigenvalues.
        tolerance: accepted error, relative to the largest magnitude.
        matrix: hessian, gauss-newton, or central-differences (of gradients, for a model without second derivatives).
        weight_decay: added to all eigenvalues.
        max_matvecs: largest number of products; it then returns without having converged.
        start: the result of an earlier call for similar parameters; saves most of the products.
        seed: of the random start.

    Raises:
        ValueError: top_k is not in 1..number of parameters, the tolerance is not positive, the matrix is unknown, or
            an operation of the model has no second derivative.
    """
    operator = curvature(objective, matrix=matrix, weight_decay=weight_decay)
    pairs = largest_eigenpairs(
        operator,
        top_k,
        tolerance=tolerance,
        max_matvecs=max_matvecs,
        start=None if start is None else start.pairs.memory,
        seed=seed,
    )
    vectors = [unflatten(vector, trainable(objective.model)) for vector in pairs.vectors]
    return Sharpness(pairs.values.tolist(), vectors, pairs.matvecs, pairs.error, pairs.converged, pairs)


@accepts_data
def hessian_trace(
    objective: FullBatchObjective, *, num_matvecs: int = 90, matrix: str = "hessian", seed: int = 0
) -> Trace:
    """Estimate the trace of the curvature of L; see ``fullbatch.analysis.spectrum.trace``.

    Takes ``objective``, or ``model, loss_fn, data``, and ``matrix`` as ``sharpness`` does.
    """
    return trace(curvature(objective, matrix=matrix), num_matvecs, seed)


@accepts_data
def spectral_density(
    objective: FullBatchObjective, *, num_vectors: int = 1, num_steps: int = 80, matrix: str = "hessian", seed: int = 0
) -> SpectralDensity:
    """Estimate the density of the curvature's eigenvalues; see ``fullbatch.analysis.spectrum.spectral_density``.

    Takes ``objective``, or ``model, loss_fn, data``, and ``matrix`` as ``sharpness`` does.
    """
    return spectrum.spectral_density(curvature(objective, matrix=matrix), num_vectors, num_steps, seed)
