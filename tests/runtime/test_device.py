"""Devices by name, and the global flags of a run."""

import os
from collections.abc import Iterator

import pytest
import torch

from fullbatch.runtime.device import find_device, set_up


@pytest.fixture(autouse=True)
def _flags() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_auto_is_an_accelerator_or_the_cpu() -> None:
    expected = torch.accelerator.current_accelerator(check_available=True)
    assert find_device("auto") == (expected or torch.device("cpu"))
    assert find_device("CPU") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta:x"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"device={name}: cannot be used .*accepted: auto, cpu, cuda"):
        find_device(name)


def test_threads_are_capped_at_the_cores() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert set_up(threads=10_000, benchmark=True, deterministic=False) == cores
    assert set_up(threads=1, benchmark=True, deterministic=False) == torch.get_num_threads() == 1


def test_deterministic_forbids_what_is_not() -> None:
    set_up(threads=1, benchmark=True, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
