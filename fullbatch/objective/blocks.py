"""Data of every accepted kind as blocks of (inputs, labels), the same in every pass."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
)

from fullbatch.randomness import derive_seed
from fullbatch.typing import Block

Data: TypeAlias = Any
"""What ``as_blocks`` accepts."""

BLOCK_SIZE = 128
"""The number of samples in a block of data that do not come in blocks."""

ACCEPTED = (
    "a tuple (inputs, labels) of tensors or arrays, a list of such blocks, a map-style Dataset, a DataLoader without "
    "shuffling, or a FullBatchObjective"
)


def as_blocks(data: Data, size: int = BLOCK_SIZE) -> Iterable[Any]:
    """Return data as an iterable that yields the same blocks each time; ``iterate`` reads it.

    Accepted are

    - a tuple (inputs, labels) of tensors or NumPy arrays with one row per sample, or a ``TensorDataset`` of two
      tensors: one data set, which is cut into blocks of ``size`` samples and a last one of the remainder;
    - a list of blocks, each a pair (inputs, labels), or any other iterable that is not used up by a pass;
    - a map-style ``Dataset`` of pairs: blocks of ``size`` samples, in order;
    - a ``DataLoader`` without shuffling;
    - ``fullbatch.typing.Blocks``, whose keys then seed dropout; a ``BlockLoader``, whose step 0 is used; a
      ``FullBatchObjective``, whose data are used.

    Raises:
        ValueError: other data, an iterator, or a ``DataLoader`` that shuffles; names what was given.
    """
    if isinstance(data, Rows | ConstantBlocks):
        return replace(data, size=size) if isinstance(data, Rows) else data
    if callable(getattr(data, "sub_batches", None)):  # an objective
        return as_blocks(data.data)
    if callable(getattr(data, "blocks", None)) and not hasattr(data, "sizes"):
        return as_blocks(data.blocks(0))
    if type(data) is TensorDataset and len(data.tensors) == 2:
        data = data.tensors
    if isinstance(data, tuple) and any(map(_is_array, data)):
        return _rows(data, size)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=size)
    if isinstance(data, Iterator):
        raise ValueError(
            f"data: an iterator ({type(data).__name__}), which ends after one pass; use data that can be iterated "
            "repeatedly: a list of (inputs, labels) blocks, or the DataLoader itself"
        )
    is_iterable = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    if not is_iterable or _is_array(data) or isinstance(data, str | bytes | Mapping | set | frozenset):
        raise ValueError(f"data: {_describe(data)}; expected {ACCEPTED}")
    if isinstance(data, DataLoader):
        _require_sequential(data)
    blocks: Iterable[Any] = data
    return blocks


def iterate(data: Iterable[Any], *, required: bool = False, dtype: torch.dtype | None = None) -> Iterator[Block]:
    """Yield the blocks of ``as_blocks`` as tensors, without any effect on the CPU's global random number generator.

    A ``DataLoader`` draws a seed at the start of every iteration. So the generator has two states, which are exchanged:
    one for the data, which starts as a copy, and one for everything else. Lists and ``Blocks`` draw nothing. Arrays of
    floating-point numbers are converted to ``dtype``, those of integers to int64; tensors stay as they are.

    Raises:
        ValueError: a block is not a pair of as many inputs as labels, or has no samples; with ``required``, also if
            there is no block.
    """
    draws_nothing = isinstance(data, list | tuple | Rows) or hasattr(data, "sizes")
    number = -1
    for number, raw in enumerate(data if draws_nothing else _with_own_random_state(data)):
        yield checked(raw, number, dtype)
    if required and number < 0:
        raise ValueError("data: no blocks; expected at least one (inputs, labels) pair")


def checked(raw: Any, number: int, dtype: torch.dtype | None = None) -> Block:
    """Return block ``number`` as tensors with its key; see ``iterate``."""
    name = f"data: block {number} (counted from 0)"
    if not isinstance(raw, tuple | list) or len(raw) not in (2, 3) or (len(raw) == 3 and not isinstance(raw[2], int)):
        raise ValueError(f"{name} is {_describe(raw)}; expected a pair (inputs, labels). Data are {ACCEPTED}")
    inputs, labels = (
        _tensor(values, f"{name}: {part}", dtype) for part, values in zip(("inputs", "labels"), raw[:2], strict=True)
    )
    if inputs.ndim == 0 or labels.ndim == 0 or len(inputs) != len(labels):
        shapes = f"inputs {list(inputs.shape)} and labels {list(labels.shape)}"
        raise ValueError(f"{name} has {shapes}; expected one row of each per sample")
    if len(labels) == 0:
        raise ValueError(f"{name} has no samples")
    return Block(inputs, labels, raw[2] if len(raw) == 3 else derive_seed(0, number))


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of ``inputs`` and ``labels`` as blocks of ``size`` samples."""

    inputs: Any
    labels: Any
    size: int

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.size)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for start in range(0, len(self.labels), self.size):
            yield self.inputs[start : start + self.size], self.labels[start : start + self.size]


@dataclass(frozen=True)
class ConstantBlocks:
    """Any data as the blocks of training steps, the same in every step; those from ``start`` to ``stop - 1``.

    ``dtype`` as of ``iterate``.
    """

    data: Any
    dtype: torch.dtype | None = None
    start: int = 0
    stop: int | None = None
    constant: ClassVar[bool] = True

    def blocks(self, step: int, *, shuffle: bool = False, with_replacement: bool = False) -> "ConstantBlocks":
        """Return the blocks."""
        if shuffle or with_replacement:
            raise ValueError("data: blocks cannot be shuffled nor drawn; use a fullbatch.data.loader.BlockLoader")
        return self

    def __len__(self) -> int:
        if self.stop is None:
            return len(self.data) if hasattr(self.data, "__len__") else sum(1 for _ in iterate(self.data))
        return self.stop - self.start

    def __getitem__(self, part: slice) -> "ConstantBlocks":
        numbers = range(self.start, self.start + len(self))[part]
        return replace(self, start=numbers.start, stop=max(numbers.start, numbers.stop))

    def __iter__(self) -> Iterator[Block]:
        return islice(iterate(self.data, dtype=self.dtype), self.start, self.stop)


def _rows(data: tuple[Any, ...], size: int) -> Rows:
    if len(data) != 2 or not all(map(_is_array, data)):
        raise ValueError(f"data: {_describe(data)}; expected {ACCEPTED}")
    shapes = [tuple(values.shape) for values in data]
    if not all(shapes) or shapes[0][0] != shapes[1][0]:
        raise ValueError(f"data: inputs {list(shapes[0])} and labels {list(shapes[1])}; expected one row per sample")
    return Rows(*data, size)


def _require_sequential(loader: DataLoader[Any]) -> None:
    if isinstance(loader.dataset, IterableDataset):
        return
    order = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    while type(order) is BatchSampler:
        order = order.sampler
    sequential = isinstance(order, SequentialSampler | list | tuple | range)
    if not sequential and not (isinstance(order, DistributedSampler) and not order.shuffle):
        raise ValueError(
            f"data: the DataLoader shuffles ({type(order).__name__}), but all evaluations need the same blocks; use "
            "shuffle=False, or a list of indices as the sampler"
        )


def _with_own_random_state(data: Iterable[Any]) -> Iterator[Any]:
    iterator, end, state = None, object(), torch.get_rng_state()
    while True:
        outside = torch.get_rng_state()
        torch.set_rng_state(state)
        try:
            iterator = iter(data) if iterator is None else iterator
            block = next(iterator, end)
        except (
            RuntimeError,
            TypeError,
            LookupError,
            AttributeError,
        ) as error:  # such as samples of several shapes, or images that are no tensors
            if not isinstance(data, DataLoader) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(f"data: the DataLoader cannot make a block: {_first_line(error)}") from error
        finally:
            state = torch.get_rng_state()
            torch.set_rng_state(outside)
        if block is end:
            return
        yield block


def _is_array(values: Any) -> bool:
    return isinstance(values, Tensor) or hasattr(values, "__array__")


def _tensor(values: Any, name: str, dtype: torch.dtype | None) -> Tensor:
    if isinstance(values, Tensor):
        if values.is_meta:
            raise ValueError(f"{name} are on the meta device, without values")
        return values
    array = values.__array__() if hasattr(values, "__array__") else None
    if array is None or array.dtype.kind not in "biufc" or array.dtype.str[1:] == "u8":
        kind = _describe(values) if array is None else f"an array of {array.dtype}"
        raise ValueError(
            f"{name} are {kind}; expected a tensor, or an array of bool, integers or floating-point numbers"
        )
    if array.dtype.kind == "f":
        tensor = torch.from_numpy(array.astype("float64"))
        return tensor.to(dtype or torch.float64)
    kinds = {"b": "bool", "c": "complex128"}
    return torch.from_numpy(array.astype(kinds.get(array.dtype.kind, "int64")))


def _first_line(error: Exception) -> str:
    return next(filter(None, str(error).strip().splitlines()), type(error).__name__)


def _describe(value: Any) -> str:
    if _is_array(value):
        return f"{type(value).__name__} {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
    if isinstance(value, tuple | list) and len(value) <= 3:
        return f"{type(value).__name__} of ({', '.join(map(_describe, value))})"
    return type(value).__name__
