"""What a database of images holds: records, and a manifest that says what they are a function of.

A record is the copy of one sample in one round. Its key is (round, sample), two unsigned big-endian numbers of 32 bits,
so that keys in order go through the samples round by round. Its value is a checksum (CRC-32 of the rest), the label,
two unsigned little-endian numbers of 32 bits, and the image, uint8 [C, H, W]. The manifest is JSON.
"""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1  # of records and manifest
HEADER = struct.Struct("<II")  # checksum, label
_CHECKSUM = _LABEL = struct.Struct("<I")
KEY = np.dtype(">u4")
_ABOUT_THE_MACHINE = ("versions",)  # entries of a manifest that may differ

Manifest = dict[str, Any]
"""Source, transforms, seed, rounds and shape: what the records are a function of. Plain JSON."""


class OtherImagesError(ValueError):
    """A database is whole, but of other images than wanted."""


def parsed(content: bytes) -> Manifest:
    """Read a manifest; ``ValueError`` where it is none of this program's."""
    manifest = json.loads(content)
    if not (isinstance(manifest, dict) and manifest.get("format") == FORMAT):
        raise ValueError(f"its manifest is not of format {FORMAT}")
    return manifest


def require_equal(folder: Path, found: Manifest | None, wanted: Manifest) -> None:
    """Raise ``ValueError`` where a database holds something else than wanted; versions of libraries may differ."""
    if found is None:
        raise ValueError("no manifest")
    names = [name for name in wanted if name not in _ABOUT_THE_MACHINE and found.get(name) != wanted[name]]
    if names:
        differences = "; ".join(f"{name}: {found.get(name)} there, {wanted[name]} here" for name in names)
        raise OtherImagesError(
            f"{folder}: holds other images ({differences}); data.db.rebuild_existing_database=True replaces "
            "them, another data.db.path keeps both"
        )


def packed(rounds: np.ndarray, samples: np.ndarray) -> list[bytes]:
    """Return the keys of samples (int64 [n]) in rounds (int64 [n])."""
    content = np.stack([rounds, samples], axis=1).astype(KEY).tobytes()
    size = 2 * KEY.itemsize
    return [content[start : start + size] for start in range(0, len(content), size)]


def encoded(label: int, image: np.ndarray) -> bytes:
    """Return the value of a record."""
    content = _LABEL.pack(label) + image.tobytes()
    return _CHECKSUM.pack(zlib.crc32(content)) + content


def label_of(value: bytes) -> int:
    """Return the label in the value of a record."""
    return int(HEADER.unpack_from(value)[1])


def verify(key: bytes, value: memoryview | None, size: int) -> memoryview:
    """Return the value; ``ValueError`` where it is missing, not of ``size`` bytes, or not what was written."""
    if value is None or len(value) != size or HEADER.unpack_from(value)[0] != zlib.crc32(value[4:]):
        place, sample = np.frombuffer(key, KEY)
        problem = "is missing" if value is None else "is damaged"
        raise ValueError(f"the image of sample {sample} in round {place} {problem}")
    return value
