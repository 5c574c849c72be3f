"""The content of a surface's database, by value: a manifest, arrays, points and leases.

- The manifest is JSON: what the values are a function of (weights, data, directions, settings), with the dtype, shape
  and checksum of each array.
- Arrays (directions, path) are raw little-endian numbers.
- A point's key is (x, y), two big-endian doubles. Its value is a checksum (CRC-32 of the rest) and three little-endian
  doubles: loss, accuracy, full loss.
- A lease has the key of its point. Its value is JSON: the owner's machine, process and token, and when it expires.
"""

import json
import os
import platform
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fullbatch.landscape.digests import digest, little_endian
from fullbatch.landscape.grid import Point
from fullbatch.landscape.surface import Value
from fullbatch.runtime.lmdb import DatabaseKind
from fullbatch.runtime.locks import is_alive
from fullbatch.runtime.manifests import Manifest

SURFACE = DatabaseKind(
    other="another surface",
    rebuild_key="viz.rebuild_existing_database",
    place_key="viz.database_name",
    size_key="viz.map_size",
    version={"format": "fullbatch landscape", "version": 1},
    ignored=("arrays", "versions"),  # arrays are taken from the database
)
_POINT, _CHECKSUM = struct.Struct(">dd"), struct.Struct("<I")
_VALUES = struct.Struct(f"<{len(Value._fields)}d")

Arrays = Mapping[str, np.ndarray]


def manifest_of(arrays: Arrays, **contents: Any) -> Manifest:
    """Return the manifest of a surface with these arrays; ``contents`` is what its values are a function of."""
    described = {
        name: {"dtype": array.dtype.newbyteorder("<").str, "shape": list(array.shape), "digest": digest([array])}
        for name, array in arrays.items()
    }
    plain: Manifest = json.loads(json.dumps({**SURFACE.version, **contents, "arrays": described}, default=str))
    return plain


def encode_array(array: np.ndarray) -> bytes:
    """Return the record of an array."""
    return little_endian(array)


def decode_array(name: str, content: bytes | None, described: Mapping[str, Any]) -> np.ndarray:
    """Return the array of a record; ``ValueError`` where it is missing or not what the manifest describes."""
    if content is None:
        raise ValueError(f"the array {name} is missing")
    dtype, shape = np.dtype(described["dtype"]), tuple(described["shape"])
    if len(content) == dtype.itemsize * int(np.prod(shape)):
        array = np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))
        if digest([array]) == described["digest"]:
            return array
    raise ValueError(f"the array {name} is damaged")


def key_of(point: Point) -> bytes:
    """Return the key of a point; -0 and 0 are one coordinate."""
    return _POINT.pack(*(coordinate + 0.0 for coordinate in point))


def encode(value: Value) -> bytes:
    """Return the record of a value."""
    content = _VALUES.pack(*value)
    return _CHECKSUM.pack(zlib.crc32(content)) + content


def decode(point: Point, content: bytes) -> Value:
    """Return the value of a record; ``ValueError`` where its checksum does not match."""
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
        """Return this process, with a new token."""
        return cls(platform.node(), os.getpid(), os.urandom(8).hex())

    def lease(self, expires: float) -> bytes:
        """Return the record of a lease that ends at ``expires`` (seconds since 1970)."""
        return json.dumps({**vars(self), "expires": expires}).encode()

    def holds(self, content: bytes | None) -> bool:
        """Return whether a lease is this process's own."""
        return content is not None and json.loads(content)["token"] == self.token

    def may_take(self, content: bytes | None, now: float) -> bool:
        """Return whether there is no lease, or it has expired, or its owner on this machine has died."""
        if content is None:
            return True
        lease = json.loads(content)
        if lease["expires"] <= now:
            return True
        if (lease["machine"], lease["process"]) == (self.machine, self.process):
            return bool(lease["token"] != self.token)  # an earlier process had this number
        return not is_alive(lease["process"], lease["machine"])
