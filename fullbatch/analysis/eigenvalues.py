"""The largest eigenvalues of a symmetric matrix that is known by its products alone.

A subspace grows, one product at a time, by the residual of the worst of the wanted Ritz pairs. From one start vector
that is the Lanczos method with full orthogonalization; from several (the eigenvectors of a matrix that was measured a
few steps ago) it refines what is there already, which a plain Lanczos method cannot. When the subspace is full it
starts again from its best Ritz vectors (thick restart; Wu & Simon, 2000).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

GUARDS = 1
"""Pairs that are followed beside the wanted ones: an eigenvalue that overtakes one of those is known before it does."""
SCOUTED = 2
"""Pairs behind those that are watched, too, while the subspace grows."""
ROOM = 20
"""How many vectors the subspace may have beside those it starts again from."""


@dataclass
class Operator:
    """A symmetric matrix [size, size] as v -> A v; counts the products.

    ``like`` gives dtype and device of the vectors.
    """

    size: int
    product: Callable[[Tensor], Tensor]
    like: Tensor
    matvecs: int = field(default=0, init=False)

    def __call__(self, v: Tensor) -> Tensor:
        """Return A v; ``ValueError`` where it is not finite."""
        self.matvecs += 1
        image = self.product(v)
        if not image.isfinite().all():
            raise ValueError("curvature: a matrix-vector product is not finite")
        return image

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
    """Estimated error of the worst value, relative to the largest magnitude found."""
    matvecs: int
    """Products that it took."""
    converged: bool
    """Whether ``error`` is within the tolerance."""
    memory: Tensor
    """[k + guards, n]: where to start for a matrix near by."""


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
    error of about min(r, r^2/gap) (Kato, 1949; Temple, 1928), if the subspace has seen what lies near by. So

    1. a start that is given is joined by a scout, the image of a random vector, which has a share of every large
       eigenvalue: near the edge of stability eigenvalues overtake each other, and what was largest may not be now;
    2. the error is what the last two products have raised the value by, where that is more;
    3. the subspace also grows where theta + 2r of one of the next pairs exceeds the last of the wanted values.

    All errors and excesses are to be below ``tolerance`` times the largest magnitude among the Ritz values.

    Args:
        operator: the matrix.
        k: how many.
        tolerance: see above.
        max_matvecs: products after which it ends unconverged.
        start: [j, n], rows that span approximate eigenvectors (``Eigenpairs.memory``); None: random vectors.
        seed: of the random vectors.

    Raises:
        ValueError: k is not in 1..n, a tolerance or a number of products is not positive, or products are not finite.
    """
    if not 1 <= k <= operator.size:
        raise ValueError(f"top_k={k}: there are {operator.size:,} eigenvalues; accepted: 1 to {operator.size}")
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance}: should be greater than 0")
    if max_matvecs < 1:
        raise ValueError(f"max_matvecs={max_matvecs}: should be greater than or equal to 1")
    before, space = operator.matvecs, _start(operator, k, start, seed)
    history = [torch.full((k,), -torch.inf, dtype=torch.float64)] * 2
    while True:
        values, coefficients = space.ritz_pairs()
        history.append(values[:k])
        followed = min(k + GUARDS + SCOUTED, space.dimension)
        residuals = space.residuals(values[:followed], coefficients[:, :followed])
        errors = torch.zeros(followed, dtype=torch.float64)
        if space.dimension < operator.size:
            lengths = torch.linalg.vector_norm(residuals, dim=1).cpu().double()
            errors[:k] = torch.maximum(_errors(values, lengths[:k]), values[:k] - history[-3])
            errors[k:] = values[k:followed] + 2 * lengths[k:] - values[k - 1]
        bound, spent = tolerance * values.abs().max(), operator.matvecs - before
        if bool((errors <= bound).all()) or spent >= max_matvecs:
            break
        if space.full:
            space.restart(coefficients[:, :followed])
        space.extend(residuals[int(errors.argmax())])
    memory, scale = space.combinations(coefficients[:, : k + GUARDS]), max(float(values.abs().max()), 1e-300)
    error = min(float(errors[:k].max()) / scale, 1.0)  # infinite where there was no product to spare for a comparison
    return Eigenpairs(values[:k], memory[:k], error, spent, bool((errors <= bound).all()), memory)


def _start(operator: Operator, k: int, start: Tensor | None, seed: int) -> "_Subspace":
    generator, least = torch.Generator().manual_seed(seed), min(k + GUARDS, operator.size)
    space = _Subspace(operator, min(least + SCOUTED + ROOM, operator.size), generator)
    if start is not None:
        for vector in start.to(operator.like)[:least]:
            space.extend(vector)
        if not space.full:
            space.extend(operator(operator.random(generator)))
    while space.dimension < least:
        space.extend(None)
    return space


def _errors(values: Tensor, lengths: Tensor) -> Tensor:
    distances = (values[: len(lengths), None] - values[None, :]).abs()
    distances.fill_diagonal_(torch.inf)
    gaps = distances.amin(dim=1)
    return torch.minimum(lengths, lengths.square() / gaps.clamp_min(1e-300))


class _Subspace:
    """An orthonormal basis V (rows), its images A V, and the projection V A V'."""

    def __init__(self, operator: Operator, capacity: int, generator: torch.Generator) -> None:
        self.operator, self.dimension = operator, 0
        self._basis = operator.like.new_empty(capacity, operator.size)
        self._images = torch.empty_like(self._basis)
        self._projection = torch.zeros(capacity, capacity, dtype=torch.float64)
        self._generator = generator

    @property
    def full(self) -> bool:
        return self.dimension == len(self._basis)

    def extend(self, vector: Tensor | None) -> None:
        """Add a direction; a random one for None, and for a vector that is in the subspace already."""
        unit, number = self._new_unit(vector), self.dimension
        self._basis[number], self._images[number] = unit, self.operator(unit)
        self.dimension += 1
        row = (self._basis[: self.dimension] @ self._images[number]).cpu().double()
        self._projection[number, : self.dimension] = row
        self._projection[: self.dimension, number] = row

    def ritz_pairs(self) -> tuple[Tensor, Tensor]:
        """Return values [d], descending, and coefficients [d, d] of the vectors in the basis."""
        values, coefficients = torch.linalg.eigh(self._projection[: self.dimension, : self.dimension])
        return values.flip(0), coefficients.flip(1)

    def residuals(self, values: Tensor, coefficients: Tensor) -> Tensor:
        """Return A u - theta u for each pair, [k, n]."""
        coefficients = coefficients.T.to(self._basis)
        scaled = coefficients * values.to(self._basis)[:, None]
        return coefficients @ self._images[: self.dimension] - scaled @ self._basis[: self.dimension]

    def combinations(self, coefficients: Tensor) -> Tensor:
        """Return the vectors with these coefficients, [k, n]."""
        return coefficients.T.to(self._basis) @ self._basis[: self.dimension]

    def restart(self, coefficients: Tensor) -> None:
        """Keep the span of the vectors with these coefficients, [d, j]."""
        kept, turned = coefficients.shape[1], coefficients.T.to(self._basis)
        self._basis[:kept] = turned @ self._basis[: self.dimension]
        self._images[:kept] = turned @ self._images[: self.dimension]
        projection = self._projection[: self.dimension, : self.dimension]
        self._projection[:kept, :kept] = coefficients.T @ projection @ coefficients
        self.dimension = kept

    def _new_unit(self, vector: Tensor | None) -> Tensor:
        basis = self._basis[: self.dimension]
        while True:
            if vector is None:
                vector = self.operator.random(self._generator)
            length = torch.linalg.vector_norm(vector)
            for _ in range(2):  # once leaves what rounding made of the difference
                vector = vector - basis.T @ (basis @ vector)
            rest = torch.linalg.vector_norm(vector)
            if rest > 10 * torch.finfo(vector.dtype).eps * length:
                unit = vector / rest
                return unit - basis.T @ (basis @ unit)
            vector = None
