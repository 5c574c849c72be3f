"""The rate at which a device multiplies matrices, as a reference for the speed of training.

It is no strict upper bound: convolutions can be faster if their kernels are better tuned or their data fit a cache.
"""

import time
from functools import cache

import torch

_LONG_ENOUGH = 0.02  # seconds of one product
_MAX_SIZE = 8192
_REPETITIONS = 5


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of square matrix products.

    Sizes double from 512 until a product takes 20 ms; each is timed five times, and the best of all counts. Takes about
    half a second, once for each device, dtype and number of threads.
    """
    return _matmul_peak(device, dtype, torch.get_num_threads())


@cache
def _matmul_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    size, best = 512, 0.0
    generator = torch.Generator(device).manual_seed(0)
    while True:
        # Random factors: GPUs, whose power is limited, multiply equal numbers faster, as fewer bits flip.
        left, right = torch.randn(2, size, size, generator=generator, device=device).to(dtype)
        seconds = min(_seconds(left, right) for _ in range(_REPETITIONS))
        best = max(best, 2 * size**3 / seconds)
        if seconds >= _LONG_ENOUGH or size >= _MAX_SIZE:
            return best
        size *= 2


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    _synchronize(left.device)
    start = time.perf_counter()
    left @ right
    _synchronize(left.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
