"""A stand-in for CUDA graphs on the CPU, with their rules: only operators are repeated, on the same memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fullbatch import randomness

WAITS = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.equal")


class Tape(TorchDispatchMode):
    """Records operators with the tensors they read and write; nothing else of the Python program is repeated.

    As under capture, waiting for a value is a ``RuntimeError``, and so is touching a random number generator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, Any, Any, Any]] = []
        self.num_records = self.num_replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).rpartition(".")[0] in WAITS:
            raise RuntimeError(f"{func} while recording")
        found = func(*args, **(kwargs or {}))
        self.operators.append((func, args, kwargs or {}, found))
        return found

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Do ``work`` and return what does it again."""
        self.operators, self.num_records = [], self.num_records + 1
        with pytest.MonkeyPatch.context() as patch, self:
            for name in ("get_rng_state", "set_rng_state", "manual_seed"):
                patch.setattr(randomness.torch, name, _refuse)
            patch.setattr(randomness.torch.random, "fork_rng", _refuse)
            work()
        operators = self.operators

        def replay() -> None:
            self.num_replays += 1
            with torch.no_grad():
                for func, args, kwargs, results in operators:
                    _repeat(func, args, kwargs, results)

        return replay


def _repeat(func: Any, args: Any, kwargs: Any, results: Any) -> None:
    given, new = _memory((args, kwargs)), pytree.tree_leaves(func(*args, **kwargs))
    for was, now in zip(pytree.tree_leaves(results), new, strict=True):
        if isinstance(was, Tensor) and not _memory(was) <= given:  # else a view, or written in place
            was.copy_(now)


def _memory(values: Any) -> set[int]:
    """Where the tensors lie; those that are known to be zero lie nowhere."""
    tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if not tensor._is_zerotensor()}


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("a generator was touched while recording")
