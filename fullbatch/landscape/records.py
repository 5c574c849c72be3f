"""What a database of a surface holds, by value: a manifest, arrays, points and leases.

- The manifest is JSON: what the values are a function of (weights, data, directions, settings), with the kind and the
  checksum of each array.
- Arrays (directions, path) are raw little-endian numbers.
- A point's key is (x, y), two big-endian doubles; its value a checksum (CRC-32 of the rest) and three little-endian
  doubles: loss, accuracy, full loss.
- A lease has the key of its point; its value is JSON: the owner's machine, process and token, and when it expires.
"""

import json
import os
import platform
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fullbatch.landscape.digests import digest, little_endian
from fullbatch.landscape.grid import Point
from fullbatch.landscape.surface import Value
from fullbatch.runtime.locks import is_alive
from fullbatch.training.checkpoint import differences

FORMAT = "fullbatch landscape"
VERSION = 1
_ABOUT_THE_FILE = ("arrays", "versions")  # described by what is there, not by what is wanted
_POINT, _CHECKSUM = struct.Struct(">dd"), struct.Struct("<I")
_VALUES = struct.Struct(f"<{len(Value._fields)}d")

Manifest = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


class OtherSurfaceError(ValueError):
    """A database is whole, but of another surface than wanted."""


def manifest_of(arrays: Arrays, **contents: Any) -> Manifest:
    """Return the manifest of a surface with these arrays; ``contents`` is what its values are a function of."""
    described = {name: _described(array) for name, array in arrays.items()}
    whole = {"format": FORMAT, "version": VERSION, **contents, "arrays": described}
    plain: Manifest = json.loads(json.dumps(whole, default=str))
    return plain


def _described(array: np.ndarray) -> dict[str, Any]:
    dtype = array.dtype.newbyteorder("<").str
    return {"dtype": dtype, "shape": list(array.shape), "digest": digest([array])}


def parsed(content: bytes) -> Manifest:
    """Read a manifest; ``ValueError`` where it is none of this program's."""
    manifest = json.loads(content)
    if not (isinstance(manifest, dict) and manifest.get("format") == FORMAT):
        raise ValueError("its manifest is that of another program")
    if manifest["version"] != VERSION:
        raise ValueError(f"format {manifest['version']}; this version reads format {VERSION}")
    return manifest


def require_equal(folder: Path, found: Manifest, wanted: Manifest) -> None:
    """Raise ``OtherSurfaceError`` where a database holds another surface than wanted."""
    ours, theirs = ({k: v for k, v in m.items() if k not in _ABOUT_THE_FILE} for m in (wanted, found))
    lines = differences(theirs, ours)
    if lines:
        raise OtherSurfaceError(
            f"{folder}: holds another surface ({'; '.join(lines[:5])}); viz.rebuild_existing_database=True replaces "
            "it, another viz.database_name keeps both"
        )


def encoded_array(array: np.ndarray) -> bytes:
    """Return the numbers of an array."""
    return little_endian(array)


def decoded_array(name: str, content: bytes | None, described: Mapping[str, Any]) -> np.ndarray:
    """Return an array; ``ValueError`` where it is not what the manifest says."""
    if content is None:
        raise ValueError(f"the array {name} is missing")
    dtype, shape = np.dtype(described["dtype"]), tuple(described["shape"])
    if len(content) != dtype.itemsize * int(np.prod(shape)):
        raise ValueError(f"the array {name} is damaged")
    array = np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    if digest([array]) != described["digest"]:
        raise ValueError(f"the array {name} is damaged")
    return array


def key_of(point: Point) -> bytes:
    """Return the key of a point; -0 and 0 are one coordinate."""
    return _POINT.pack(*(coordinate + 0.0 for coordinate in point))


def encoded(value: Value) -> bytes:
    """Return the record of a value."""
    content = _VALUES.pack(*value)
    return _CHECKSUM.pack(zlib.crc32(content)) + content


def decoded(point: Point, content: bytes) -> Value:
    """Return the value of a record; ``ValueError`` where it is not what was written."""
    size = _CHECKSUM.size
    if len(content) != size + _VALUES.size or _CHECKSUM.unpack(content[:size])[0] != zlib.crc32(content[size:]):
        raise ValueError(f"the value at ({point[0]:g}, {point[1]:g}) is damaged")
    return Value(*_VALUES.unpack(content[size:]))


@dataclass(frozen=True)
class Owner:
    """A process that computes points."""

    machine: str
    process: int
    token: str

    @classmethod
    def here(cls) -> "Owner":
        """Return this process, with a token of its own."""
        return cls(platform.node(), os.getpid(), os.urandom(8).hex())

    def lease(self, expires: float) -> bytes:
        """Return the record of a lease until then (seconds since 1970)."""
        return json.dumps({**vars(self), "expires": expires}).encode()

    def holds(self, content: bytes | None) -> bool:
        """Return whether a lease is this process' own."""
        return content is not None and json.loads(content)["token"] == self.token

    def may_take(self, content: bytes | None, now: float) -> bool:
        """Return whether there is no lease, or one that is expired or whose owner has died on this machine."""
        if content is None:
            return True
        lease = json.loads(content)
        if lease["expires"] <= now:
            return True
        return lease["machine"] == self.machine and not self._lives(lease)

    def _lives(self, lease: Mapping[str, Any]) -> bool:
        if lease["process"] == self.process:
            return bool(lease["token"] == self.token)  # else of a process before with the same number
        return is_alive(lease["process"], lease["machine"])
