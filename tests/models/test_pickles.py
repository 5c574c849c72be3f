"""Reading files of torch.save: what is refused, in one line, before it takes memory or runs code."""

import argparse
import contextlib
import os
import resource
from collections import Counter, OrderedDict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import odd_files
import pytest
import torch
from torch import nn

from fullbatch.models.model_file import read_model
from fullbatch.models.weights import load_weights


@pytest.mark.parametrize("name", odd_files.FILES)
def test_odd_files_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    message = odd_files.write(name, path)
    content = path.read_bytes()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as caught:
        read_model(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300_000  # KiB
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    assert len(text) < 500
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_a_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a file but a device, a pipe or a socket"):
            read_model(path)
    with pytest.raises(IsADirectoryError):
        read_model(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_accompanies_weights_is_read_as_nothing(tmp_path: Path, legacy: bool) -> None:
    weights = {"w": torch.randn(2, 2), "shared": torch.randn(1).expand(3)}
    other: Any = {"acc": np.float64(91.2), "history": np.arange(3.0), "args": argparse.Namespace(lr=0.1, out=Path("x"))}
    torch.save(
        {"net": weights, "raw": b"bytes", **other}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy
    )
    stored = read_model(tmp_path / "x.pth").weights
    assert all(torch.equal(stored[name], tensor) for name, tensor in weights.items())


def test_dictionaries_of_other_classes_are_read(tmp_path: Path) -> None:
    """Those of Python 2 were made of lists of items; schedulers count milestones."""
    weights = {"w": torch.randn(2, 2)}
    content = odd_files.Calls(OrderedDict, [["net", weights], ["milestones", Counter([3, 3, 5])]])
    torch.save(content, tmp_path / "x.pth")
    assert torch.equal(read_model(tmp_path / "x.pth").weights["w"], weights["w"])


@pytest.mark.parametrize("legacy", [False, True])
def test_a_changed_pickle_is_read_or_refused(tmp_path: Path, legacy: bool) -> None:
    """Even where checksums are right: any error but ``ValueError`` fails."""
    model, random, path = nn.Linear(3, 2), Random(3), tmp_path / "x.pth"
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint = odd_files.checkpoint(state__model=model.state_dict(), state__optimizer=optimizer.state_dict())
    for content in ([optimizer.state_dict(), model.state_dict(), {}, {}, 3], checkpoint):
        stored = odd_files.saved(content, _use_new_zipfile_serialization=not legacy)
        pickled = stored if legacy else odd_files.pickle_of(content)
        storages = {} if legacy else odd_files.storages_of(stored)
        for _ in range(300):
            changed = odd_files.mutated(pickled, random)
            path.write_bytes(changed if legacy else odd_files.raw(changed, storages))
            with contextlib.suppress(ValueError):
                load_weights(model, read_model(path).weights)
