"""Trace and spectral density of a symmetric matrix from matrix-vector products."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fullbatch.analysis.eigenvalues import Operator


@dataclass(frozen=True)
class Trace:
    """An estimate of a trace, the standard error of its random part, and the number of products."""

    value: float
    error: float
    matvecs: int


def trace(operator: Operator, num_matvecs: int, seed: int = 0) -> Trace:
    """Estimate the trace by Hutch++ (Meyer, Musco, Musco & Woodruff, 2021).

    A third of the products computes the span Q of large eigenvalues, a third the trace of Q' A Q exactly, and a third
    estimates, with random signs z, the trace of the rest, E[z' (I - QQ') A (I - QQ') z]. Exact for a matrix whose rank
    is at most a third of ``num_matvecs``.

    Raises:
        ValueError: fewer than 6 products (two in each part, as the standard error needs).
    """
    if num_matvecs < 6:
        raise ValueError(f"num_matvecs={num_matvecs}: should be greater than or equal to 6")
    part = min(num_matvecs // 3, operator.size)
    before, generator = operator.matvecs, torch.Generator().manual_seed(seed)
    sketch = torch.stack([operator(_signs(operator, generator)) for _ in range(part)], dim=1)
    span = torch.linalg.qr(sketch).Q
    large = sum(float(q @ operator(q)) for q in span.T)
    samples = []
    for _ in range(part):
        z = _signs(operator, generator)
        z = z - span @ (span.T @ z)
        samples.append(float(z @ operator(z)))
    rest = torch.tensor(samples, dtype=torch.float64)
    error = float(rest.std()) / math.sqrt(part) if part > 1 else math.nan
    return Trace(large + float(rest.mean()), error, operator.matvecs - before)


@dataclass(frozen=True)
class SpectralDensity:
    """Eigenvalues as point masses: ``weights`` [m] (sum 1) at ``nodes`` [m], float64 on the CPU."""

    nodes: Tensor
    weights: Tensor
    matvecs: int

    def smooth(self, grid: Tensor, width: float) -> Tensor:
        """Return the density on ``grid``, each mass a normal distribution of standard deviation ``width``."""
        bumps = torch.exp(-((grid[:, None] - self.nodes) ** 2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi))
        return bumps @ self.weights


def spectral_density(operator: Operator, num_vectors: int = 1, num_steps: int = 80, seed: int = 0) -> SpectralDensity:
    """Estimate the density of the eigenvalues by stochastic Lanczos quadrature (Ubaru, Chen & Saad, 2017).

    For each random unit vector v, ``num_steps`` Lanczos steps give nodes and weights with sum_j w_j p(theta_j) =
    v' p(A) v for all polynomials p of degree below 2 ``num_steps``; the mean over v estimates the trace of p(A)/n.

    Raises:
        ValueError: a number is not positive.
    """
    for name, number in (("num_vectors", num_vectors), ("num_steps", num_steps)):
        if number < 1:
            raise ValueError(f"{name}={number}: should be greater than or equal to 1")
    before, generator = operator.matvecs, torch.Generator().manual_seed(seed)
    nodes, weights = [], []
    for _ in range(num_vectors):
        theta, first = torch.linalg.eigh(_lanczos(operator, operator.random(generator), num_steps))
        nodes.append(theta)
        weights.append(first[0].square() / num_vectors)
    return SpectralDensity(torch.cat(nodes), torch.cat(weights), operator.matvecs - before)


def _lanczos(operator: Operator, vector: Tensor, num_steps: int) -> Tensor:
    """Return the tridiagonal matrix [m, m], float64, of at most ``num_steps`` steps with full orthogonalization."""
    basis = [vector / torch.linalg.vector_norm(vector)]
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    scale = 0.0
    for _ in range(min(num_steps, operator.size)):
        product = operator(basis[-1])
        diagonal.append(float(basis[-1] @ product))
        scale = max(scale, float(torch.linalg.vector_norm(product)))
        for _ in range(2):
            for unit in basis:
                product = product - (unit @ product) * unit
        length = float(torch.linalg.vector_norm(product))
        if length <= 100 * torch.finfo(product.dtype).eps * scale:
            break  # the span is invariant: the quadrature is exact
        off_diagonal.append(length)
        basis.append(product / length)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    upper = torch.diag(torch.tensor(off_diagonal[: len(diagonal) - 1], dtype=torch.float64), 1)
    return matrix + upper + upper.T


def _signs(operator: Operator, generator: torch.Generator) -> Tensor:
    return operator.random(generator).sign()
