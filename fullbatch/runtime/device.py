"""Device, precision and memory format; the only place that sets global flags of PyTorch."""

import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch

log = logging.getLogger(__name__)

DTYPES = {"float": torch.float32, "float32": torch.float32, "double": torch.float64, "float64": torch.float64}
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def find_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device by name; ``auto`` is cuda, mps or cpu, the first there is.

    ``local_rank`` is that of one of several processes on this machine: of several CUDA devices it takes its own.

    Raises ``ValueError`` for a device that is unknown or not there.
    """
    if name.lower() == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return _own(accelerator if accelerator is not None else torch.device("cpu"), local_rank)
    try:
        device = torch.device(name.lower())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={name}: cannot be used ({reason}); accepted: auto, cpu, cuda, cuda:0, mps") from None
    return _own(device, local_rank)


def _own(device: torch.device, local_rank: int | None) -> torch.device:
    if local_rank is None or device.type != "cuda" or device.index is not None:
        return device
    found = torch.cuda.device_count()
    if local_rank >= found:
        raise ValueError(f"device=cuda: process {local_rank} of this machine has none of its {found} devices")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def set_up(*, threads: int, benchmark: bool, deterministic: bool, processes: int = 1) -> int:
    """Set PyTorch's global flags; return the number of threads, which is capped at the cores this process may use.

    Several ``processes`` of a machine share its cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(threads, max(cores // processes, 1))
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark and not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its bits only with this set
    torch.use_deterministic_algorithms(deterministic)
    return threads


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside, let CUDA's float32 products and convolutions round their factors to TF32, or forbid it."""
    switches: tuple[Any, Any] = (torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn).conv)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def give_memory_back() -> None:
    """Give main memory that is free in this process back to the system, where that is glibc's to do.

    Its allocator does not always use the freed memory of one block for the next (measured: 6 MiB more with each block
    of 6 MiB, all of it returned by this call), so a long stream of blocks would fill the memory.
    """
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def describe(device: torch.device) -> str:
    """Return the device's name and the version of PyTorch, for the log."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {torch.get_num_threads()} CPU threads, PyTorch {torch.__version__}"
