"""Files that are damaged, hostile or of another kind, each with a part of the message that refuses it."""

import codecs
import gzip
import io
import os
import pickle
import struct
import tarfile
import tempfile
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from fullbatch.runtime.archives import write_archive

HUGE = 10**10
OPERATIONS = [bytes([code]) for code in b"qrhj(tub}])RQcsae\x85\x86\x87NKJM\x8a"]
"""Of pickles of tensors and containers."""
LONG, NUMBERS = "x" * 10**5, list(range(1000))


class Calls:
    """A pickle that calls ``function`` when an ordinary unpickler reads it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class Sub(Tensor):
    """A subclass of tensors."""


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def raw(pickled: bytes, storages: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive like those of ``torch.save`` with any pickle and storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/version", "3\n")
        for name, content in (storages or {}).items():
            archive.writestr(f"x/data/{name}", content)
    return buffer.getvalue()


def with_checksum(archive: bytes) -> bytes:
    """Return an archive as ``write_archive`` ends it."""
    with tempfile.TemporaryDirectory() as folder, mock.patch("torch.save", lambda content, file: file.write(content)):
        write_archive(Path(folder) / "x.pth", archive)
        return (Path(folder) / "x.pth").read_bytes()


def pickle_of(content: Any) -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved(content))) as archive:
        return archive.read("archive/data.pkl")


def storages_of(stored: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(stored)) as archive:
        return {n.rpartition("/")[2]: archive.read(n) for n in archive.namelist() if "/data/" in n}


def tensor_of(number: int) -> bytes:
    """Return a pickle of a state dict with a storage of ``number`` values for a tensor of 2^20 + 4."""
    return pickle_of({"w": torch.zeros(2**20 + 4)}).replace(struct.pack("<i", 2**20 + 4), struct.pack("<i", number), 1)


def twice(depth: int) -> list[Any]:
    part: list[Any] = [1.0]
    for _ in range(depth):
        part = [part, part]
    return part


def endless() -> list[Any]:
    part: list[Any] = []
    part.append(part)
    return part


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def script() -> bytes:
    """Return an archive with a name as in those of ``torch.jit.save``."""
    buffer = io.BytesIO(raw(pickle_of({})))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("x/constants.pkl", "")
    return buffer.getvalue()


def with_attributes(value: Any) -> Any:
    """Return a dictionary or a parameter with an attribute that replaces a method."""
    value = OrderedDict(value) if isinstance(value, dict) else value
    value.keys = value.is_floating_point = 3
    return value


def list_of_five(step: Any) -> list[Any]:
    return [{"state": {}, "param_groups": []}, {"w": torch.zeros(2)}, {}, {}, step]


def checkpoint(**changes: Any) -> dict[str, Any]:
    """Return a checkpoint with a changed part; one with two underlines is inside of ``state``."""
    state = {"model": {"w": torch.zeros(2)}, "ema": None, "optimizer": {}, "rows": [{"step": 1}]}
    content = {"format": "fullbatch checkpoint", "version": 1, "config": {}, "seed": 0, "state": state}
    for key, value in changes.items():
        (state if key.startswith("state__") else content)[key.removeprefix("state__")] = value
    return content


def zeros(**entries: Any) -> dict[str, Any]:
    return {"conv.weight": torch.zeros(2, 2), **entries}


DAMAGED = r"x\.pth: damaged or truncated \("
SIZES = r"unpacks to \de\+\d+ numbers, far more than its [\d,]+ bytes can contain"
NESTED = DAMAGED + "containers are nested too deeply or contain themselves"
DENSE = r"accepted: dense tensors"
CODE = r"contains more than tensors and plain containers: "
FIVE = r"a list of 5 that is not \[optimizer state, model state, scheduler state, scaler state, step up to 1,000,000\]"

FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    # larger in memory than on the disk
    "an expanded tensor": (lambda: saved(zeros(x=torch.zeros(1).expand(HUGE))), SIZES),
    "many names of one storage": (lambda: saved(dict.fromkeys(map(str, range(3000)), torch.zeros(10**5))), SIZES),
    "bytearray": (lambda: saved(zeros(x=Calls(bytearray, HUGE))), SIZES),
    "bytes again and again": (lambda: saved([Calls(codecs.encode, LONG, "latin1") for _ in range(1000)]), SIZES),
    "sets again and again": (lambda: saved([Calls(set, NUMBERS) for _ in range(30000)]), SIZES),
    "a converted tensor": (
        lambda: saved(
            Calls(
                torch._utils._rebuild_device_tensor_from_cpu_tensor,
                torch.zeros(1).expand(2**33),
                torch.half,
                "cpu",
                False,
            )
        ),
        "the entry itself is a tensor of a device",
    ),
    "uninitialized": (lambda: saved(zeros(x=Calls(torch.FloatTensor, HUGE))), CODE + r"torch\.FloatTensor"),
    "compressed": (lambda: raw(pickle_of({}), {"0": bytes(10**7)}, zipfile.ZIP_DEFLATED), "entries are larger"),
    "compressed, with checksum": (
        lambda: with_checksum(raw(pickle_of({}), {"0": bytes(10**7)}, zipfile.ZIP_DEFLATED)),
        "entries are larger",
    ),
    "memo": (lambda: raw(b"\x80\x02}r\xff\xff\xff\xff."), "contains no model"),
    "a long string that is not there": (lambda: raw(b"\x80\x02X\xff\xff\xff\x7fabc."), DAMAGED),
    "a storage larger than its entry": (lambda: with_checksum(raw(tensor_of(2**20 + 4), {"0": bytes(16)})), DAMAGED),
    "a storage smaller than its tensor": (lambda: raw(tensor_of(4), {"0": bytes(16)}), DAMAGED),
    "a storage that is not there": (lambda: raw(tensor_of(4)), DAMAGED),
    # containers
    "deep": (lambda: raw(b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."), NESTED),
    "deep dictionaries": (lambda: raw(b"\x80\x02" + b"}K\x01" * 500 + b"N" + b"s" * 500 + b"."), NESTED),
    "parts again and again": (lambda: saved({"w": torch.zeros(2), "x": twice(50)}), NESTED),
    "itself": (lambda: saved({"w": torch.zeros(2), "x": endless()}), NESTED),
    "a list of an enormous step": (lambda: saved(list_of_five(10**9)), FIVE),
    "a list of a step of many digits": (lambda: saved(list_of_five(2**2000)), FIVE),
    "a list of a true step": (lambda: saved(list_of_five(True)), FIVE),
    "a list of a fractional step": (lambda: saved(list_of_five(3.0)), FIVE),
    "a list of an optimizer of integers": (lambda: saved(list_of_five(3)[1:]), "a list of 4 that is not"),
    "a deep tuple as a name": (lambda: raw(b"\x80\x02})" + b"\x85" * 10**6 + b"Ns."), DAMAGED + "tuples are nested"),
    "a doubled tuple as a name": (
        lambda: raw(b"\x80\x02})" + b"q\x01h\x01\x86" * 60 + b"Ns."),
        DAMAGED + "tuples are nested",
    ),
    "a tensor that is changed": (
        lambda: raw(pickle_of(torch.zeros(1))[:-1] + b"N\x85b.", {"0": bytes(4)}),
        DAMAGED + "a tensor that is changed afterwards",
    ),
    "attributes of a dictionary": (lambda: saved(with_attributes(zeros())), DAMAGED + "a dictionary with attributes"),
    "attributes of a parameter": (
        lambda: saved({"w": with_attributes(nn.Parameter(torch.zeros(2)))}),
        "the entry w is a parameter with attributes of its own",
    ),
    "an expanded tensor in a counter": (
        lambda: saved({"x": Calls(Counter, {"w": torch.zeros(1).expand(HUGE)})}),
        SIZES,
    ),
    "an expanded tensor in a list of items": (
        lambda: saved(Calls(OrderedDict, [["w", torch.zeros(1).expand(HUGE)]])),
        SIZES,
    ),
    # entries
    "sparse": (lambda: saved(zeros(x=torch.eye(2).to_sparse())), r"the entry x is a sparse tensor; " + DENSE),
    "sparse, inside": (
        lambda: saved({"a": {"b": zeros(x=torch.eye(2).to_sparse_csr())}}),
        r"the entry a\.b\.x is a sparse",
    ),
    "quantized": (lambda: saved(zeros(x=torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))), "a quantized"),
    "meta": (
        lambda: saved(zeros(x=torch.zeros(2, device="meta"))),
        "the entry x is a meta tensor, which has no values",
    ),
    "nested": (lambda: saved(zeros(x=torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))), "a nested tensor"),
    "a subclass": (lambda: saved(zeros(x=torch.ones(2).as_subclass(Sub))), "the entry x is a tensor of a subclass"),
    "float8": (
        lambda: saved(zeros(x=torch.ones(2).to(torch.float8_e4m3fn))),
        r"the entry x is of torch\.float8_e4m3fn",
    ),
    "a number": (
        lambda: saved(zeros(epoch=3)),
        r"contains no model: neither a state dict \(the entry epoch is of type int\)",
    ),
    "a text": (lambda: saved(zeros(**{"a\nb": "c"})), r"the entry a is of type str"),
    "a name without end": (lambda: saved({"n" * 10**6: 3}), r"the entry n{120}\.\.\. is of type int"),
    "names that are numbers": (lambda: saved({0: torch.zeros(2)}), r"the name of the entry 0 is of type int"),
    "a name that is a tuple": (
        lambda: saved({(1, "a"): torch.zeros(2)}),
        r"the name of the entry \(1, 'a'\) is of type tu",
    ),
    "nothing": (lambda: saved({}), "it is empty"),
    "None": (lambda: saved(None), "it is of type NoneType"),
    "an enormous number": (lambda: saved({"w": 2**2000}), "the entry w is of type int"),
    # checkpoints of this program
    "format": (lambda: saved({"format": torch.zeros(2), "x": 3}), "the entry x is of type int"),
    "version": (lambda: saved(checkpoint(version=torch.ones(2))), "checkpoint of format"),
    "no seed": (
        lambda: saved({"format": "fullbatch checkpoint", "version": 1, "config": {}}),
        "the entry seed is missing",
    ),
    "no version": (lambda: saved({"format": "fullbatch checkpoint"}), "checkpoint of format None"),
    "no state": (lambda: saved(checkpoint(state=None)), DAMAGED + "the entry state is of type NoneType"),
    "a list as state": (lambda: saved(checkpoint(state=[])), DAMAGED + "the entry state is of type list"),
    "seed": (lambda: saved(checkpoint(seed="one")), DAMAGED + "the entry seed is of type str"),
    "config": (lambda: saved(checkpoint(config=3)), DAMAGED + "the entry config is of type int"),
    "rows": (lambda: saved(checkpoint(state__rows=None)), DAMAGED + r"the entry state\.rows is of type NoneType"),
    "a row": (lambda: saved(checkpoint(state__rows=[{"step": 1}, 3])), r"the entry state\.rows\.1 is not a row"),
    "a row of texts": (
        lambda: saved(checkpoint(state__rows=[{"step": "1"}])),
        r"the entry state\.rows\.0 is not a row",
    ),
    "average": (lambda: saved(checkpoint(state__ema=torch.zeros(2))), r"the entry state\.ema is of type Tensor"),
    "weights": (lambda: saved(checkpoint(state__model=[])), r"the entry state\.model is of type list"),
    # code
    "a function": (lambda: saved(zeros(x=Calls(os.system, "touch was_here"))), CODE + r"posix\.system"),
    "a model": (lambda: saved(nn.Linear(2, 2)), CODE + r"collections\.|" + CODE),
    "a function of a stand-in": (lambda: saved(Calls(getattr, Calls(__import__, "numpy"), "x")), CODE),
    # other formats
    "an empty file": (lambda: b"", DAMAGED + "the file is empty"),
    "text": (lambda: b"hello\n" * 100, DAMAGED + "neither a file of torch.save nor of safetensors"),
    "a page": (lambda: b"<!DOCTYPE html><html></html>", "a page of HTML"),
    "gzip": (lambda: gzip.compress(saved(zeros())), "compressed by gzip; unpack it"),
    "tar": (tar, "a tar archive; unpack it"),
    "Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
    "TorchScript": (script, r"a TorchScript archive; save torch\.jit\.load"),
    "another archive": (
        lambda: raw(b"").replace(b"x/data.pkl", b"x/data.pkk"),
        "an archive that torch.save did not write",
    ),
    "a pickle": (lambda: pickle.dumps({"w": [1.0]}), DAMAGED + "a pickle that torch.save did not write"),
    "half a legacy file": (lambda: saved(zeros(), _use_new_zipfile_serialization=False)[:-3], DAMAGED),
    "another protocol": (lambda: saved(zeros(), pickle_protocol=4), DAMAGED + "Unsupported operand"),
    "safetensors of another size": (lambda: struct.pack("<Q", 5) + b"{}   ", "it is empty"),
}


def write(name: str, path: Path) -> str:
    """Write a file of ``FILES`` and return a part of the message that refuses it."""
    make, message = FILES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about kinds of tensors
        path.write_bytes(make())
    return message


def mutated(content: bytes, random: Random) -> bytes:
    """Return a pickle in which a few bytes are replaced, removed or repeated."""
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 5])):
        start, other = random.randrange(len(changed)), random.randrange(len(changed))
        part = [random.randbytes(1), b"", changed[other : other + random.randrange(40)], random.choice(OPERATIONS)]
        changed[start : start + random.randrange(3)] = random.choice(part)
    return bytes(changed)
