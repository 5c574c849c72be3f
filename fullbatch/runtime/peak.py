"""The rate at which the device multiplies matrices: the limit that training is measured against."""

import time
from functools import cache

import torch

_ENOUGH = 0.02  # seconds of one product
_LARGEST = 8192
_REPETITIONS = 3


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating-point operations a second of square matrix products, the best of a few of at least 20 ms.

    Measured once for each device, dtype and number of threads; takes about a tenth of a second.
    """
    return _matmul_peak(device, dtype, torch.get_num_threads())


@cache
def _matmul_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    size = 512
    while True:
        left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        seconds = min(_seconds(left, right) for _ in range(_REPETITIONS))
        if seconds >= _ENOUGH or size >= _LARGEST:
            return 2 * size**3 / seconds
        size *= 2


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    _wait(left.device)
    start = time.perf_counter()
    left @ right
    _wait(left.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
