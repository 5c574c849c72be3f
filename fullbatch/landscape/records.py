"""The content of a surface's database, by value: a manifest, arrays, points and leases.

- The manifest is JSON: what the values are a function of (weights, data, directions, settings), with the dtype, shape
  and checksum of each array.
- Arrays (directions, path) are raw little-endian numbers.
- A point's key is (x, y), two big-endian doubles. Its value is a checksum and three little-endian doubles: loss,
  accuracy, full loss. The checksum is the BLAKE2b digest (8 bytes) of manifest, key and doubles, so that a value counts
  for its own point and surface only. Earlier versions stored the CRC-32 of the doubles (4 bytes), which is still read.
- A lease has the key of its point. Its value is JSON: the owner's machine, process and token, and when it expires.
"""

import hashlib
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
_DIGEST_SIZE = 8
_LONGEST_LEASE = 3600.0
"""Seconds; a lease that ends later is damaged."""

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


def identity_of(manifest: Manifest) -> bytes:
    """Return the digest of a stored manifest, without the entries that do not identify it."""
    content = {key: value for key, value in manifest.items() if key != "versions"}
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).digest()


def encode(point: Point, value: Value, identity: bytes) -> bytes:
    """Return the record of the value at a point of the surface with this identity."""
    content = _VALUES.pack(*value)
    return _checksum(point, content, identity) + content


def decode(point: Point, record: bytes | None, identity: bytes) -> Value | None:
    """Return the value of a record; None where there is none or its checksum does not match."""
    if record is None:
        return None
    checksum, content = record[: -_VALUES.size], record[-_VALUES.size :]
    if checksum in (_checksum(point, content, identity), _CHECKSUM.pack(zlib.crc32(content))):
        return Value(*_VALUES.unpack(content))
    return None


def _checksum(point: Point, content: bytes, identity: bytes) -> bytes:
    return hashlib.blake2b(identity + key_of(point) + content, digest_size=_DIGEST_SIZE).digest()


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
        lease = _parse_lease(content)
        return lease is not None and lease[0].token == self.token

    def may_take(self, content: bytes | None, now: float) -> bool:
        """Return whether there is no intact lease, or it has expired, or its owner on this machine has died."""
        lease = _parse_lease(content)
        if lease is None:
            return True
        other, expires = lease
        if not now < expires <= now + _LONGEST_LEASE:
            return True
        if (other.machine, other.process) == (self.machine, self.process):
            return other.token != self.token  # an earlier process had this number
        return not is_alive(other.process, other.machine)


def _parse_lease(content: bytes | None) -> tuple[Owner, float] | None:
    """Return owner and end of a lease; None where there is none or it is damaged."""
    try:
        lease = json.loads(content or b"")
        owner, expires = Owner(str(lease["machine"]), int(lease["process"]), str(lease["token"])), lease["expires"]
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    return (owner, float(expires)) if isinstance(expires, int | float) and 0 < owner.process < 2**31 else None
