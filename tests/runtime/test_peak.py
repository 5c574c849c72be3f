"""The peak of matrix products: operations over the best time, measured once."""

import pytest
import torch

from fullbatch.runtime import peak


@pytest.mark.parametrize(("second", "expected"), [(0.025, 2 * 1024**3 / 0.025), (0.25, 2 * 512**3 / 0.01)])
def test_operations_over_the_best_of_the_times(monkeypatch: pytest.MonkeyPatch, second: float, expected: float) -> None:
    times = iter([0.02, 0.01, 0.02, 0.05, 0.1, 0.5, 0.3, 0.4, second, 0.3])  # of 512, then of 1024, which is enough
    monkeypatch.setattr(peak, "_seconds", lambda left, right: next(times))
    peak._matmul_peak.cache_clear()
    try:
        for _ in range(2):  # the second time from memory: no more times are there
            assert peak.matmul_peak(torch.device("cpu"), torch.float32) == expected
    finally:
        peak._matmul_peak.cache_clear()


def test_it_is_a_rate_that_products_reach() -> None:
    device = torch.device("cpu")
    found = peak.matmul_peak(device, torch.float32)
    left = torch.ones(64, 64)
    assert found > 2 * 64**3 / peak._seconds(left, left) / 10


def test_products_are_of_numbers_that_differ_and_come_from_a_generator_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factors: list[torch.Tensor] = []
    monkeypatch.setattr(peak, "_seconds", lambda *both: factors.extend(both) or 1.0)
    state = torch.get_rng_state()
    peak._matmul_peak.cache_clear()
    try:
        peak.matmul_peak(torch.device("cpu"), torch.float32)
    finally:
        peak._matmul_peak.cache_clear()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(len(factor.unique()) > factor.numel() / 2 for factor in factors)
