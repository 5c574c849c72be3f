"""Files in the formats of the paper's code, and a stand-in for safetensors if it is not installed."""

import json
import struct
import sys
import types
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def write_list(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, optimizer_state: Any = None
) -> None:
    """Write [optimizer state, model state, scheduler state, scaler state, step]."""
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = optimizer.state_dict() if optimizer_state is None else optimizer_state
    path.parent.mkdir(exist_ok=True)
    torch.save([state, model.state_dict(), scheduler.state_dict(), scaler.state_dict(), step], path)


def trained(model: nn.Module, inputs: Tensor, steps: int = 3) -> torch.optim.Optimizer:
    """Take a few steps of SGD with momentum, and return the optimizer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), torch.arange(len(inputs)) % 5).backward()
        optimizer.step()
    return optimizer


def same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Return whether both have the same names in the same order, and the same values."""
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.int64: "I64"}


def stand_in_safetensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the package if it is installed, else a short implementation of its file format."""
    if find_spec("safetensors") is None:
        package, module = types.ModuleType("safetensors"), types.ModuleType("safetensors.torch")
        module.save, module.load = _save, _load  # type: ignore[attr-defined]
        package.torch = module  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "safetensors", package)
        monkeypatch.setitem(sys.modules, "safetensors.torch", module)


def _save(tensors: dict[str, Tensor]) -> bytes:
    header: dict[str, Any] = {}
    content = b""
    for name, tensor in tensors.items():
        assert tensor.is_contiguous()
        data = tensor.numpy().tobytes()
        offsets = [len(content), len(content) + len(data)]
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        content += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def _load(content: bytes) -> dict[str, Tensor]:
    (size,) = struct.unpack("<Q", content[:8])
    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    tensors = {}
    for name, entry in json.loads(content[8 : 8 + size]).items():
        start, stop = entry["data_offsets"]
        data = bytearray(content[8 + size + start : 8 + size + stop])
        assert len(data) == stop - start, "truncated"
        tensors[name] = torch.frombuffer(data, dtype=dtypes[entry["dtype"]]).view(entry["shape"])
    return tensors
