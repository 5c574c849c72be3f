"""Devices by name, and the global flags of a run."""

import os
from collections.abc import Iterator

import pytest
import torch

from fullbatch.runtime import device
from fullbatch.runtime.device import find_device, set_up
from fullbatch.runtime.resources import available_cores


@pytest.fixture(autouse=True)
def _flags() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_auto_is_an_accelerator_or_the_cpu() -> None:
    expected = torch.accelerator.current_accelerator(check_available=True)
    assert find_device("auto") == (expected or torch.device("cpu"))
    assert find_device("CPU") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta:x"])
def test_an_unavailable_device_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"device={name}: cannot be used .*accepted: auto, cpu, cuda"):
        find_device(name)


def test_each_process_gets_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [find_device("auto", rank) for rank in (None, 1)] == [torch.device("cuda"), torch.device("cuda", 1)]
    assert chosen == [1]
    with pytest.raises(ValueError, match="device=cuda: no GPU for process 2 of this machine, which has 2"):
        find_device("auto", 2)


def test_threads_are_capped_at_the_cores() -> None:
    cores = available_cores()
    assert set_up(threads=10_000, benchmark=True, deterministic=False) == cores
    assert set_up(threads=10_000, benchmark=True, deterministic=False, processes=cores) == 1
    assert set_up(threads=1, benchmark=True, deterministic=False) == torch.get_num_threads() == 1


def test_automatic_threads_are_the_default_capped_at_the_share_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_cores", lambda: 8)
    for default, processes, threads in ((8, 1, 8), (8, 3, 2), (2, 1, 2), (2, 3, 2), (3, 4, 2), (64, 1, 8)):
        monkeypatch.setattr(device, "default_threads", lambda default=default: default)
        assert set_up(threads="auto", benchmark=True, deterministic=False, processes=processes) == threads
        assert torch.get_num_threads() == threads
        assert set_up(threads=5, benchmark=True, deterministic=False) == 5  # whatever OMP_NUM_THREADS is


def test_deterministic_algorithms_are_switched_on_and_off() -> None:
    set_up(threads=1, benchmark=True, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_up(threads=1, benchmark=True, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
