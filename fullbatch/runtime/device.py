"""Device, precision and memory format; the only place that sets global flags of PyTorch."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from fullbatch.runtime.allocator import keep_freed_memory

log = logging.getLogger(__name__)

DTYPES = {"float": torch.float32, "float32": torch.float32, "double": torch.float64, "float64": torch.float64}


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


def set_up(*, threads: int, benchmark: bool, deterministic: bool, processes: int = 1, tf32: bool = False) -> int:
    """Set PyTorch's global flags; return the number of threads, which is capped at the cores this process may use.

    Several ``processes`` of a machine share its cores. Without ``tf32``, float32 on CUDA is float32; by itself PyTorch
    would round the factors of convolutions.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(threads, max(cores // processes, 1))
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark and not deterministic
    _set_tf32(tf32)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its bits only with this set
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports torch's compiler (seconds)
        torch.use_deterministic_algorithms(deterministic)
    return threads


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside, let CUDA's float32 products and convolutions round their factors to TF32, or forbid it."""
    before = [switch.fp32_precision for switch in _tf32_switches()]
    _set_tf32(allowed)
    try:
        yield
    finally:
        for switch, value in zip(_tf32_switches(), before, strict=True):
            switch.fp32_precision = value


def _set_tf32(allowed: bool) -> None:
    for switch in _tf32_switches():
        switch.fp32_precision = "tf32" if allowed else "ieee"


def _tf32_switches() -> tuple[Any, Any]:
    return torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn).conv


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16, so that autocast saves time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.10 and later tell
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def describe(device: torch.device) -> str:
    """Return the device's name and the version of PyTorch, for the log."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {torch.get_num_threads()} CPU threads, PyTorch {torch.__version__}"
