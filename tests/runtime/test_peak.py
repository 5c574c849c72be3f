"""The peak rate of matrix products: operations divided by the best time, measured once."""

import pytest
import torch

from fullbatch.runtime import peak


@pytest.mark.parametrize(("second", "expected"), [(0.025, 2 * 1024**3 / 0.025), (0.25, 2 * 512**3 / 0.01)])
def test_the_peak_is_the_best_rate_of_all_sizes(
    monkeypatch: pytest.MonkeyPatch, second: float, expected: float
) -> None:
    times = iter([0.02, 0.01, 0.02, 0.05, 0.1, 0.5, 0.3, 0.4, second, 0.3])  # five for size 512, five for 1024
    monkeypatch.setattr(peak, "_seconds", lambda left, right: next(times))
    peak._matmul_peak.cache_clear()
    try:
        for _ in range(2):  # the second result is cached: there are no more times
            assert peak.matmul_peak(torch.device("cpu"), torch.float32) == expected
    finally:
        peak._matmul_peak.cache_clear()


def test_products_reach_the_peak_within_a_factor_of_ten() -> None:
    device = torch.device("cpu")
    rate = peak.matmul_peak(device, torch.float32)
    left = torch.ones(64, 64)
    assert rate > 2 * 64**3 / peak._seconds(left, left) / 10


def test_factors_are_random_and_leave_the_global_generator_alone(
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
