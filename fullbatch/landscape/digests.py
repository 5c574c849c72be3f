"""Checksums of models and data, which identify a surface."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def digest(parts: Iterable[np.ndarray | Tensor | bytes]) -> str:
    """Return the BLAKE2b digest of bytes, arrays and tensors, with the dtypes and shapes of the latter."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, bytes):
            state.update(part)
            continue
        state.update(f"{part.dtype}{tuple(part.shape)}".encode())
        array = part.detach().cpu().reshape(-1).view(torch.uint8).numpy() if isinstance(part, Tensor) else part
        state.update(little_endian(array))
    return state.hexdigest()


def digest_of_model(model: nn.Module) -> str:
    """Return the digest of all parameters and buffers with their names."""
    return digest(part for name, tensor in model.state_dict().items() for part in (name.encode(), tensor))


def digest_of_data(data: Iterable[Any]) -> str:
    """Return the digest of all inputs and labels."""
    return digest(torch.as_tensor(part) for inputs, labels, *_ in data for part in (inputs, labels))


def little_endian(array: np.ndarray) -> bytes:
    """Return the numbers of an array as little-endian bytes."""
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
