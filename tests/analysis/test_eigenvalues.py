"""Eigenvalues, trace and density of dense matrices with given spectra."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fullbatch.analysis.eigenvalues import Operator, largest_eigenpairs
from fullbatch.analysis.spectrum import spectral_density, trace


def matrix(values: Tensor, seed: int = 0) -> Tensor:
    """Return a symmetric matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    return (q * values) @ q.T


def operator(dense: Tensor) -> Operator:
    return Operator(len(dense), lambda v: dense @ v, dense.new_empty(0))


def spectrum(size: int, seed: int = 0) -> Tensor:
    """Return five outliers, two of them equal, and a bulk on both sides of 0."""
    bulk = torch.randn(max(size - 5, 0), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([torch.tensor([10.0, 9.0, 9.0, 7.0, 6.5], dtype=torch.float64)[:size], bulk])


@pytest.mark.parametrize(("size", "k"), [(1, 1), (2, 1), (5, 5), (60, 1), (60, 4), (200, 6)])
def test_eigenpairs_are_those_of_the_dense_matrix(size: int, k: int) -> None:
    dense = matrix(spectrum(size))
    pairs = largest_eigenpairs(operator(dense), k, tolerance=1e-9)
    exact = torch.linalg.eigvalsh(dense).flip(0)[:k]
    assert pairs.converged
    assert torch.allclose(pairs.values, exact, rtol=1e-8, atol=1e-10)
    assert torch.allclose(pairs.vectors @ pairs.vectors.T, torch.eye(k, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(pairs.vectors @ dense, pairs.values[:, None] * pairs.vectors, atol=1e-3)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_error_is_about_within_the_tolerance(k: int) -> None:
    """Products with a few vectors cannot bound the eigenvalues, so this tries many matrices."""
    for seed in range(20):
        dense = matrix(spectrum(60, seed), seed)
        pairs = largest_eigenpairs(operator(dense), k, tolerance=1e-3, seed=seed)
        exact = torch.linalg.eigvalsh(dense).flip(0)[:k]
        assert pairs.error <= 1e-3
        assert (pairs.values - exact).abs().max() <= 2e-3 * exact.abs().max()


def test_it_restarts_when_the_subspace_is_full() -> None:
    dense = matrix(torch.linspace(0, 1, 400, dtype=torch.float64) ** 0.2)  # no gap at the top
    pairs = largest_eigenpairs(operator(dense), 1, tolerance=1e-9)
    assert pairs.matvecs > 30
    assert abs(float(pairs.values[0]) - 1) < 1e-7


def test_products_are_counted_and_limited() -> None:
    counted = operator(matrix(spectrum(100)))
    pairs = largest_eigenpairs(counted, 2, tolerance=1e-12, max_matvecs=7)
    assert pairs.matvecs == counted.matvecs == 7
    assert not pairs.converged
    assert pairs.error > 1e-12


def test_a_warm_start_saves_products() -> None:
    dense = matrix(spectrum(300))
    cold = largest_eigenpairs(operator(dense), 1, tolerance=1e-4)
    moved = dense + 0.01 * matrix(spectrum(300), seed=1)
    warm = largest_eigenpairs(operator(moved), 1, tolerance=1e-4, start=cold.memory)
    expected = largest_eigenpairs(operator(moved), 1, tolerance=1e-4)
    assert warm.matvecs < 0.7 * expected.matvecs
    assert torch.allclose(warm.values, expected.values, rtol=1e-3)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_an_eigenvalue_that_overtakes_is_found(rank: int) -> None:
    """The start is exactly the eigenvector of an eigenvalue that is no longer the largest."""
    values = torch.cat([torch.tensor([3.0, 2.9, 2.5, 2.0]), torch.linspace(-1, 1, 96)]).double()
    before = largest_eigenpairs(operator(torch.diag(values)), 1, tolerance=1e-10)
    values[rank] = 3.5
    after = largest_eigenpairs(operator(torch.diag(values)), 1, tolerance=1e-6, start=before.memory)
    assert float(after.values[0]) == pytest.approx(3.5, rel=1e-6)


def test_a_start_of_zeros_or_equal_vectors_does_no_harm() -> None:
    dense = matrix(spectrum(20))
    for start in (torch.zeros(1, 20), torch.ones(3, 20)):
        pairs = largest_eigenpairs(operator(dense), 2, tolerance=1e-9, start=start.double())
        assert torch.allclose(pairs.values, torch.linalg.eigvalsh(dense).flip(0)[:2])


def test_of_the_zero_matrix_they_are_zero() -> None:
    pairs = largest_eigenpairs(operator(torch.zeros(10, 10, dtype=torch.float64)), 2)
    assert pairs.values.tolist() == [0, 0]
    assert pairs.converged


def test_wrong_values_are_refused() -> None:
    table: list[tuple[dict[str, Any], str]] = [
        ({"k": 0}, "top_k=0: .*accepted: 1 to 6"),
        ({"k": 7}, "top_k=7: .*accepted: 1 to 6"),
        ({"k": 1, "tolerance": 0.0}, "tolerance=0.0: should be greater than 0"),
        ({"k": 1, "tolerance": -1.0}, "tolerance=-1.0"),
        ({"k": 1, "tolerance": float("nan")}, "tolerance=nan"),
        ({"k": 1, "max_matvecs": 0}, "max_matvecs=0"),
    ]
    for options, message in table:
        with pytest.raises(ValueError, match=message):
            largest_eigenpairs(operator(torch.eye(6)), **options)


def test_products_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        largest_eigenpairs(operator(torch.full((6, 6), torch.nan)), 1)


def test_the_trace_is_exact_where_the_rank_is_low() -> None:
    values = torch.zeros(100, dtype=torch.float64)
    values[:5] = torch.tensor([4.0, 3.0, -2.0, 1.0, 0.5])
    estimate = trace(operator(matrix(values)), 30)
    assert estimate.value == pytest.approx(6.5, rel=1e-10)
    assert estimate.matvecs == 30


def test_the_trace_is_correct_within_its_error() -> None:
    dense = matrix(spectrum(200))
    estimates = [trace(operator(dense), 60, seed) for seed in range(30)]
    standard = [(estimate.value - float(dense.trace())) / estimate.error for estimate in estimates]
    assert abs(sum(standard) / len(standard)) < 0.6  # unbiased: three standard errors
    assert 0.5 < torch.tensor(standard).std() < 1.8
    plain = [float(z @ dense @ z) for z in torch.randn(30, 200, dtype=torch.float64).sign()]
    assert torch.tensor(plain).std() > 3 * torch.tensor([estimate.value for estimate in estimates]).std()


def test_the_quadrature_is_exact_for_polynomials() -> None:
    dense, steps = matrix(spectrum(40) / 10), 6
    counted = operator(dense)
    density = spectral_density(counted, num_steps=steps, seed=3)
    v = counted.random(torch.Generator().manual_seed(3))
    v = v / v.norm()
    power = v
    for degree in range(2 * steps):
        assert float((density.weights * density.nodes**degree).sum()) == pytest.approx(
            float(v @ power), rel=1e-9, abs=1e-12
        )
        power = dense @ power
    assert density.matvecs == steps


def test_the_density_has_the_moments_of_the_spectrum() -> None:
    values = spectrum(60)
    density = spectral_density(operator(matrix(values)), num_vectors=200, num_steps=10)
    assert float(density.weights.sum()) == pytest.approx(1)
    assert float((density.weights * density.nodes).sum()) == pytest.approx(float(values.mean()), abs=0.15)
    grid = torch.linspace(-8, 15, 2000, dtype=torch.float64)
    assert float(torch.trapezoid(density.smooth(grid, 0.3), grid)) == pytest.approx(1, abs=1e-3)


def test_an_invariant_subspace_ends_the_quadrature() -> None:
    density = spectral_density(operator(2 * torch.eye(30, dtype=torch.float64)), num_steps=10)
    assert density.nodes.tolist() == pytest.approx([2.0])
    assert density.matvecs == 1


def test_a_density_needs_positive_numbers() -> None:
    for name in ("num_vectors", "num_steps"):
        with pytest.raises(ValueError, match=f"{name}=0: should be greater than or equal to 1"):
            spectral_density(operator(torch.eye(6)), **{name: 0})


def test_a_trace_needs_six_products() -> None:
    with pytest.raises(ValueError, match="num_matvecs=5"):
        trace(operator(torch.eye(6)), 5)
