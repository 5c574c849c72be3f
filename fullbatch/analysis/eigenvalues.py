"""The largest eigenvalues of a symmetric matrix from matrix-vector products.

A subspace grows, one product at a time, by the residual of the least accurate of the wanted Ritz pairs. From one start
vector this is the Lanczos method with full orthogonalization. Started from several vectors (the eigenvectors of the
matrix a few steps ago) it refines them, which a plain Lanczos method cannot. When the subspace is full, it restarts
from its best Ritz vectors (thick restart; Wu & Simon, 2000).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

GUARDS = 1
"""Pairs kept beside the wanted ones, so that an eigenvalue that overtakes one of these is noticed."""
CANDIDATES = 2
"""Pairs behind those whose errors are checked, too, while the subspace grows."""
CAPACITY = 20
"""Vectors of the subspace beside those that it restarts from."""


@dataclass
class Operator:
    """A symmetric matrix [size, size] as the function v -> A v. Counts the products in ``matvecs``.

    ``like`` has the dtype and device of the vectors.
    """

    size: int
    product: Callable[[Tensor], Tensor]
    like: Tensor
    matvecs: int = field(default=0, init=False)

    def __call__(self, v: Tensor) -> Tensor:
        """Return A v; raise ``ValueError`` if it is not finite."""
        self.matvecs += 1
        product = self.product(v)
        if not product.isfinite().all():
            raise ValueError("curvature: a matrix-vector product is not finite")
        return product

    def random(self, generator: torch.Generator) -> Tensor:
        """Return a standard normal vector."""
        return torch.randn(self.size, generator=generator, dtype=self.like.dtype).to(self.like.device)


@dataclass(frozen=True)
class Eigenpairs:
    """The largest eigenvalues, in descending order, with their eigenvectors."""

    values: Tensor
    """[k], float64 on the CPU."""
    vectors: Tensor
    """[k, n], orthonormal rows."""
    error: float
    """Largest estimated error of a value, relative to the largest magnitude."""
    matvecs: int
    """Number of products."""
    converged: bool
    """Whether ``error`` is within the tolerance."""
    memory: Tensor
    """[k + GUARDS, n]: ``start`` for a similar matrix."""


def largest_eigenpairs(
    operator: Operator,
    k: int,
    *,
    tolerance: float = 1e-3,
    max_matvecs: int = 1000,
    start: Tensor | None = None,
    seed: int = 0,
) -> Eigenpairs:
    """Return the k algebraically largest eigenvalues.

    A pair with value theta, residual r = ||A u - theta u|| and distance gap to the nearest other Ritz value has an
    error of about min(r, r^2/gap) (Kato, 1949; Temple, 1928), if the subspace contains the nearby eigenvectors. So

    1. a given start is completed by A z, z random, which has a component in every large eigenvector: near the edge of
       stability eigenvalues overtake each other;
    2. the error is at least the increase of the value by the last two products;
    3. the subspace also grows where theta + 2r of one of the next pairs exceeds the last of the wanted values.

    It converges when all errors and excesses are below ``tolerance`` times the largest magnitude of a Ritz value.

    Args:
        operator: the matrix.
        k: number of eigenvalues.
        tolerance: see above.
        max_matvecs: largest number of products; it then returns without having converged.
        start: [j, n], rows that span approximate eigenvectors (``Eigenpairs.memory``); None: random vectors.
        seed: of the random vectors.

    Raises:
        ValueError: k is not in 1..n, a tolerance or a number of products is not positive, or a product is not finite.
    """
    if not 1 <= k <= operator.size:
        raise ValueError(f"top_k={k}: there are {operator.size:,} eigenvalues; accepted: 1 to {operator.size}")
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance}: should be greater than 0")
    if max_matvecs < 1:
        raise ValueError(f"max_matvecs={max_matvecs}: should be greater than or equal to 1")
    before, space = operator.matvecs, _initial_subspace(operator, k, start, seed)
    history = [torch.full((k,), -torch.inf, dtype=torch.float64)] * 2
    while True:
        values, coefficients = space.ritz_pairs()
        history.append(values[:k])
        checked = min(k + GUARDS + CANDIDATES, space.dimension)
        residuals = space.residuals(values[:checked], coefficients[:, :checked])
        errors = torch.zeros(checked, dtype=torch.float64)
        if space.dimension < operator.size:
            lengths = torch.linalg.vector_norm(residuals, dim=1).cpu().double()
            distances = (values[:k, None] - values[None, :]).abs()
            gaps = distances.fill_diagonal_(torch.inf).amin(dim=1)
            estimates = torch.minimum(lengths[:k], lengths[:k].square() / gaps.clamp_min(1e-300))
            errors[:k] = torch.maximum(estimates, values[:k] - history[-3])
            errors[k:] = values[k:checked] + 2 * lengths[k:] - values[k - 1]
        bound, spent = tolerance * values.abs().max(), operator.matvecs - before
        if bool((errors <= bound).all()) or spent >= max_matvecs:
            break
        if space.full:
            space.restart(coefficients[:, :checked])
        space.extend(residuals[int(errors.argmax())])
    memory, scale = space.combinations(coefficients[:, : k + GUARDS]), max(float(values.abs().max()), 1e-300)
    error = min(float(errors[:k].max()) / scale, 1.0)  # infinite after fewer than two products
    return Eigenpairs(values[:k], memory[:k], error, spent, bool((errors <= bound).all()), memory)


def _initial_subspace(operator: Operator, k: int, start: Tensor | None, seed: int) -> "_Subspace":
    generator, least = torch.Generator().manual_seed(seed), min(k + GUARDS, operator.size)
    space = _Subspace(operator, min(least + CANDIDATES + CAPACITY, operator.size), generator)
    if start is not None:
        for vector in start.to(operator.like)[:least]:
            space.extend(vector)
        if not space.full:
            space.extend(operator(operator.random(generator)))
    while space.dimension < least:
        space.extend(None)
    return space


class _Subspace:
    """An orthonormal basis V (rows), the products A V, and the projection V A V'."""

    def __init__(self, operator: Operator, capacity: int, generator: torch.Generator) -> None:
        self.operator, self.dimension = operator, 0
        self._basis = operator.like.new_empty(capacity, operator.size)
        self._products = torch.empty_like(self._basis)
        self._projection = torch.zeros(capacity, capacity, dtype=torch.float64)
        self._generator = generator

    @property
    def full(self) -> bool:
        return self.dimension == len(self._basis)

    def extend(self, vector: Tensor | None) -> None:
        """Add a direction: a random one for None and for a vector that the subspace contains."""
        unit, number = self._orthogonal_unit(vector), self.dimension
        self._basis[number], self._products[number] = unit, self.operator(unit)
        self.dimension += 1
        row = (self._basis[: self.dimension] @ self._products[number]).cpu().double()
        self._projection[number, : self.dimension] = row
        self._projection[: self.dimension, number] = row

    def ritz_pairs(self) -> tuple[Tensor, Tensor]:
        """Return the values [d] in descending order and the coefficients [d, d] of the vectors in the basis."""
        values, coefficients = torch.linalg.eigh(self._projection[: self.dimension, : self.dimension])
        return values.flip(0), coefficients.flip(1)

    def residuals(self, values: Tensor, coefficients: Tensor) -> Tensor:
        """Return A u - theta u for each pair, [k, n]."""
        coefficients = coefficients.T.to(self._basis)
        scaled = coefficients * values.to(self._basis)[:, None]
        return coefficients @ self._products[: self.dimension] - scaled @ self._basis[: self.dimension]

    def combinations(self, coefficients: Tensor) -> Tensor:
        """Return the vectors with these coefficients, [k, n]."""
        return coefficients.T.to(self._basis) @ self._basis[: self.dimension]

    def restart(self, coefficients: Tensor) -> None:
        """Shrink the subspace to the span of the vectors with these coefficients, [d, j]."""
        kept, rotation = coefficients.shape[1], coefficients.T.to(self._basis)
        self._basis[:kept] = rotation @ self._basis[: self.dimension]
        self._products[:kept] = rotation @ self._products[: self.dimension]
        projection = self._projection[: self.dimension, : self.dimension]
        self._projection[:kept, :kept] = coefficients.T @ projection @ coefficients
        self.dimension = kept

    def _orthogonal_unit(self, vector: Tensor | None) -> Tensor:
        basis = self._basis[: self.dimension]
        while True:
            if vector is None:
                vector = self.operator.random(self._generator)
            length = torch.linalg.vector_norm(vector)
            for _ in range(2):  # the second time removes the rounding errors of the first
                vector = vector - basis.T @ (basis @ vector)
            remainder = torch.linalg.vector_norm(vector)
            if remainder > 10 * torch.finfo(vector.dtype).eps * length:
                unit = vector / remainder
                return unit - basis.T @ (basis @ unit)
            vector = None
