"""The rate at which the device multiplies matrices, which training is measured against.

No strict limit: convolutions can be faster, where their library knows the processor better or their data fit a cache.
"""

import time
from functools import cache

import torch

_ENOUGH = 0.02  # seconds of one product
_LARGEST = 8192
_REPETITIONS = 5


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating-point operations a second of square matrix products: the best of five of each of a few sizes.

    Sizes double from 512 until a product takes 20 ms. Measured once for each device, dtype and number of threads; takes
    about half a second.
    """
    return _matmul_peak(device, dtype, torch.get_num_threads())


@cache
def _matmul_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    size, best = 512, 0.0
    while True:
        left, right = (_random(size, device, dtype) for _ in range(2))
        seconds = min(_seconds(left, right) for _ in range(_REPETITIONS))
        best = max(best, 2 * size**3 / seconds)
        if seconds >= _ENOUGH or size >= _LARGEST:
            return best
        size *= 2


def _random(size: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """GPUs multiply equal numbers faster: fewer bits flip, and their power is limited."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(size, size, generator=generator, device=device).to(dtype)


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    _wait(left.device)
    start = time.perf_counter()
    left @ right
    _wait(left.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
