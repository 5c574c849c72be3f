"""How many bytes of tensors a computation holds at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


def peak_of(run: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that ``run`` holds at once in tensors that it makes.

    On CUDA as the allocator counts, workspaces included. Elsewhere tensors are followed from operator to operator,
    which is slow, and exact but for what lives inside an operator alone.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveTensors() as live:
        run()
    return live.peak


class _LiveTensors(TorchDispatchMode):
    """Knows the storages that operators have made since it was entered, as long as somebody keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        found = func(*args, **kwargs)
        self._storages = {key: entry for key, entry in self._storages.items() if not entry[0].expired()}
        for tensor in _tensors(found):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:  # views and in-place operators return what they were given
                self._storages.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self._storages.values()))
        return found


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [tensor for child in children for tensor in _tensors(child)]
