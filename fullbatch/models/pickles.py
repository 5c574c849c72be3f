"""Reading the files of ``torch.save`` within bounds and without executing code.

``torch.load(weights_only=True)`` executes no code, but a small file can make it allocate terabytes, and tensors can be
of kinds that nothing here can use. The pickle in a file is therefore inspected first (``fullbatch.models.inspection``).
Objects of some classes that often accompany weights, such as OmegaConf nodes, schedulers and NumPy scalars, are read as
``StandIn``, which contains nothing. All other classes and functions are refused.
"""

import io
import stat
import warnings
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch.serialization import safe_globals

from fullbatch.models.inspection import STAND_INS, Inspector, StandIn, shorten, walk
from fullbatch.runtime.archives import damaged, read_verified

MAX_VALUES_PER_BYTE, MAX_VALUES = 8, 2**24
"""A file of N bytes may contain tensors with ``8 N + MAX_VALUES`` values: more than N where they share memory."""

_FORMATS = {
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"version https://git-lfs": "a pointer of Git LFS; run git lfs pull",
    b"<": "a page of HTML or XML in place of the file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
}
"""First bytes -> description."""


def read_pickle(path: Path) -> Any:
    """Return the object that ``torch.save`` wrote, tensors on the CPU; no code in the file is executed.

    Raises:
        DamagedError: The file is damaged or truncated.
        ValueError: The file is of another format, contains more than tensors and plain containers, or would take
            far more memory than its size.
    """
    file_format(path)
    content = read_verified(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual pickles
        names = _inspect(path, content)
        stand_ins: list[Any] = [(StandIn, name) for name in names if STAND_INS.fullmatch(name)]
        stand_ins.append((lambda *_: {}, "collections.defaultdict"))  # items are set on it, which needs a dictionary
        try:
            with safe_globals(stand_ins):
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle can raise anything
            reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
            raise damaged(path, shorten(reason or type(error).__name__)) from error


def file_format(path: Path) -> Literal["pickle", "safetensors"]:
    """Return how a file begins, or raise ``ValueError`` where that is not supported."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a folder raises an OSError that says so
        raise ValueError(f"{path}: not a file but a device, a pipe or a socket")
    with path.open("rb") as file:
        start = file.read(512)
    # the number of bytes of a JSON object, and that
    is_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size
    if is_safetensors or path.suffix == ".safetensors":
        return "safetensors"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "pickle"
    form = next((form for magic, form in _FORMATS.items() if start.startswith(magic)), None)
    if start[257:262] == b"ustar":
        form = "a tar archive; unpack it, or save the weights again with a current version of PyTorch"
    if form is None:
        raise damaged(path, "neither a file of torch.save nor of safetensors" if start else "the file is empty")
    raise ValueError(f"{path}: {form}; accepted: files of torch.save and safetensors")


def _inspect(path: Path, content: bytes) -> set[str]:
    """Return the names of the classes and functions in a pickle; raise ``ValueError`` where the file is refused."""
    sizes, pickled = _parts(path, content)
    inspector = Inspector(io.BytesIO(pickled))
    try:
        structure = inspector.load_legacy() if sizes is None else inspector.load()
        parts = list(walk(structure, limit=10 * len(pickled)))
    except Exception as error:  # a damaged pickle can raise anything
        raise damaged(path, shorten(error)) from error
    for name, part in parts:
        if isinstance(part, StandIn) and part.problem and part.name not in inspector.refused:
            raise ValueError(f"{path}: the entry {name or 'itself'} is {part.problem}; accepted: dense tensors")
    if inspector.refused:
        raise ValueError(
            f"{path}: not a checkpoint of this program (contains more than tensors and plain containers: "
            f"{shorten(', '.join(sorted(inspector.refused)))}; of a model, save the state_dict()); "
            "the file is left untouched"
        )
    values = inspector.copied + sum(part.values for _, part in parts if isinstance(part, StandIn))
    if values > MAX_VALUES_PER_BYTE * len(content) + MAX_VALUES:
        number = f"{min(values, 10**18):.0e} numbers"
        raise ValueError(f"{path}: unpacks to {number}, far more than its {len(content):,} bytes can contain")
    for key, size in inspector.storages:
        if size > len(content) if sizes is None else size != sizes.get(key):
            raise damaged(path, f"the storage {shorten(key)} has another size than the tensors in it")
    return inspector.names


def _parts(path: Path, content: bytes) -> tuple[dict[str, int] | None, bytes]:
    """Return the number of bytes of each storage in an archive, and the pickle.

    Files of PyTorch before 1.6 are no archives; for these, the sizes are None and the pickle is the whole file.
    """
    if not content.startswith(b"PK"):
        return None, content
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        root = next(iter(sizes)).partition("/")[0]
    except Exception as error:  # zipfile raises errors of many kinds for damaged directories
        raise damaged(path, shorten(error)) from error
    if f"{root}/constants.pkl" in sizes:
        raise ValueError(f"{path}: a TorchScript archive; save torch.jit.load(...).state_dict() with torch.save")
    if f"{root}/data.pkl" not in sizes:
        raise ValueError(f"{path}: an archive that torch.save did not write")
    if len(sizes) < len(archive.infolist()) or sum(sizes.values()) > len(content):
        raise damaged(path, "its entries are larger than the file, or two have the same name")
    return {name.removeprefix(f"{root}/data/"): size for name, size in sizes.items()}, archive.read(f"{root}/data.pkl")
