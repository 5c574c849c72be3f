"""The peak of matrix products: operations over the best time, measured once."""

import pytest
import torch

from fullbatch.runtime import peak


def test_operations_over_the_best_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.001, 0.002, 0.001, 0.5, 0.25, 0.3])  # 512 is too short to be timed, 1024 is not
    monkeypatch.setattr(peak, "_seconds", lambda left, right: next(times))
    peak._matmul_peak.cache_clear()
    try:
        for _ in range(2):  # the second time from memory: no more times are there
            assert peak.matmul_peak(torch.device("cpu"), torch.float32) == 2 * 1024**3 / 0.25
    finally:
        peak._matmul_peak.cache_clear()


def test_it_is_a_rate_that_products_reach() -> None:
    device = torch.device("cpu")
    found = peak.matmul_peak(device, torch.float32)
    left = torch.ones(64, 64)
    assert found > 2 * 64**3 / peak._seconds(left, left) / 10
