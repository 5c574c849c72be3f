"""Devices by name and PyTorch's global flags, which nothing else in the package sets."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch

from fullbatch.runtime.allocator import keep_freed_memory
from fullbatch.runtime.resources import available_cores, default_threads

log = logging.getLogger(__name__)

DTYPES = {"float": torch.float32, "float32": torch.float32, "double": torch.float64, "float64": torch.float64}


def find_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device called ``name``; ``auto`` is the first available one of cuda, mps and cpu.

    Args:
        name: as for ``torch.device``, in any case.
        local_rank: rank of this process among those on this machine; None for a single process. On a machine with
            several GPUs, the process gets the GPU of this number.

    Raises:
        ValueError: the device is unknown or unavailable.
    """
    if name.lower() == "auto":
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    else:
        try:
            device = torch.device(name.lower())
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            accepted = "auto, cpu, cuda, cuda:0, mps"
            raise ValueError(f"device={name}: cannot be used ({reason}); accepted: {accepted}") from None
    if local_rank is None or device.type != "cuda" or device.index is not None:
        return device
    num_devices = torch.cuda.device_count()
    if local_rank >= num_devices:
        raise ValueError(f"device=cuda: no GPU for process {local_rank} of this machine, which has {num_devices}")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def set_up(
    *, threads: int | Literal["auto"], benchmark: bool, deterministic: bool, processes: int = 1, tf32: bool = False
) -> int:
    """Set PyTorch's global flags and return the number of threads.

    Args:
        threads: of the CPU; ``auto`` is OMP_NUM_THREADS or, without it, all cores. At most the share of this process in
            the available cores, but at least 1.
        benchmark: let cuDNN time its algorithms and choose the fastest.
        deterministic: use deterministic algorithms only.
        processes: number of processes of this job on this machine.
        tf32: allow TF32 for float32 on CUDA. PyTorch's own default allows it for convolutions.
    """
    most = max(available_cores() // processes, 1)
    number = min(default_threads() if threads == "auto" else threads, most)
    keep_freed_memory()
    torch.set_num_threads(number)
    torch.backends.cudnn.benchmark = benchmark and not deterministic
    _set_tf32(tf32)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS is not deterministic
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports torch's compiler (seconds)
        torch.use_deterministic_algorithms(deterministic)
    return number


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in CUDA's float32 matrix products and convolutions while the context is active."""
    before = [backend.fp32_precision for backend in _tf32_backends()]
    _set_tf32(allowed)
    try:
        yield
    finally:
        for backend, precision in zip(_tf32_backends(), before, strict=True):
            backend.fp32_precision = precision


def _set_tf32(allowed: bool) -> None:
    for backend in _tf32_backends():
        backend.fp32_precision = "tf32" if allowed else "ieee"


def _tf32_backends() -> tuple[Any, Any]:
    return torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn).conv


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 instructions, so that autocast saves time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # new in PyTorch 2.10
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def describe(device: torch.device) -> str:
    """Return the name of the device, the number of CPU threads and the version of PyTorch, for the log."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {torch.get_num_threads()} CPU threads, PyTorch {torch.__version__}"
