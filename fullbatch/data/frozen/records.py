"""The records of a database of images, and its manifest: what the records are a function of.

A record is the copy of one sample in one round. Its key is (round, sample), two unsigned big-endian numbers of 32 bits,
so the order of the keys is that of the samples, round by round. Its value is a checksum (CRC-32 of the rest), the
label, two unsigned little-endian numbers of 32 bits, and the image, uint8 [C, H, W]. The manifest is JSON.
"""

import struct
import zlib

import numpy as np

from fullbatch.runtime.lmdb import DatabaseKind

FORMAT = 1  # of records and manifest
HEADER = struct.Struct("<II")  # checksum, label
_CHECKSUM = _LABEL = struct.Struct("<I")
KEY = np.dtype(">u4")

IMAGES = DatabaseKind(
    other="other images",
    rebuild_key="data.db.rebuild_existing_database",
    place_key="data.db.path",
    size_key="data.db.rounds",
    version={"format": FORMAT},
    ignored=("versions",),  # of libraries
)


def pack_keys(rounds: np.ndarray, samples: np.ndarray) -> list[bytes]:
    """Return the keys of samples (int64 [n]) in rounds (int64 [n])."""
    content = np.stack([rounds, samples], axis=1).astype(KEY).tobytes()
    size = 2 * KEY.itemsize
    return [content[start : start + size] for start in range(0, len(content), size)]


def encode(label: int, image: np.ndarray) -> bytes:
    """Return the value of a record."""
    content = _LABEL.pack(label) + image.tobytes()
    return _CHECKSUM.pack(zlib.crc32(content)) + content


def label_of(value: bytes) -> int:
    """Return the label in the value of a record."""
    return int(HEADER.unpack_from(value)[1])


def verify(key: bytes, value: memoryview | None, size: int) -> memoryview:
    """Return the value; ``ValueError`` where it is missing, damaged or not of ``size`` bytes."""
    if value is None or len(value) != size or HEADER.unpack_from(value)[0] != zlib.crc32(value[4:]):
        number, sample = np.frombuffer(key, KEY)
        problem = "missing" if value is None else "damaged"
        raise ValueError(f"the image of sample {sample} in round {number} is {problem}")
    return value
