"""Trace and spectral density of a symmetric matrix that is known by its products alone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fullbatch.analysis.eigenvalues import Operator


@dataclass(frozen=True)
class Trace:
    """An estimate of a trace, with the standard error of its random part."""

    value: float
    error: float
    matvecs: int


def trace(operator: Operator, num_matvecs: int, seed: int = 0) -> Trace:
    """Estimate the trace by Hutch++ (Meyer, Musco, Musco & Woodruff, 2021).

    A third of the products finds the span Q of large eigenvalues, a third gives the trace of Q' A Q exactly, and a
    third estimates, with random signs z, the trace of the rest, E[z' (I - QQ') A (I - QQ') z]. Exact for a matrix
    whose rank is at most a third of ``num_matvecs``.

    Raises:
        ValueError: fewer than 6 products (two in each part, so that there is an error to estimate).
    """
    if num_matvecs < 6:
        raise ValueError(f"num_matvecs={num_matvecs}: should be greater than or equal to 6")
    part = min(num_matvecs // 3, operator.size)
    before, generator = operator.matvecs, torch.Generator().manual_seed(seed)
    sketch = torch.stack([operator(_signs(operator, generator)) for _ in range(part)], dim=1)
    span = torch.linalg.qr(sketch).Q
    large = sum(float(q @ operator(q)) for q in span.T)
    rest = []
    for _ in range(part):
        z = _signs(operator, generator)
        z = z - span @ (span.T @ z)
        rest.append(float(z @ operator(z)))
    samples = torch.tensor(rest, dtype=torch.float64)
    error = float(samples.std()) / math.sqrt(part) if part > 1 else math.nan
    return Trace(large + float(samples.mean()), error, operator.matvecs - before)


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
    """Return the tridiagonal matrix [m, m] of at most ``num_steps`` Lanczos steps, float64, fully orthogonalized."""
    basis = [vector / torch.linalg.vector_norm(vector)]
    diagonal: list[float] = []
    beside: list[float] = []
    scale = 0.0
    for _ in range(min(num_steps, operator.size)):
        image = operator(basis[-1])
        diagonal.append(float(basis[-1] @ image))
        scale = max(scale, float(torch.linalg.vector_norm(image)))
        for _ in range(2):
            for known in basis:
                image = image - (known @ image) * known
        length = float(torch.linalg.vector_norm(image))
        if length <= 100 * torch.finfo(image.dtype).eps * scale:
            break  # the span is invariant: the quadrature is exact
        beside.append(length)
        basis.append(image / length)
    beside = beside[: len(diagonal) - 1]
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.diag(torch.tensor(beside, dtype=torch.float64), 1)
    return matrix + off + off.T


def _signs(operator: Operator, generator: torch.Generator) -> Tensor:
    return operator.random(generator).sign()
