"""Archives of ``torch.save`` with a checksum over the whole file.

The file is an ordinary ZIP archive, which ``torch.load(weights_only=True)`` reads. Its ZIP comment holds the CRC-32 of
all bytes before it, directory and comment included, so that damage anywhere in the file is detected. A comment is
written, renamed, copied and moved with the file; a second file could be lost or belong to another version. The checksum
of 100 MB takes about 0.03 s. It protects from damage, not from forgery.

Archives without this comment, of earlier versions and of other programs, must end as ``torch.save`` ends them, so that
damage to the comment itself is detected, too, and are checked against the CRC-32 of each of their entries.
"""

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from fullbatch.runtime.files import versions, write_atomically

_MARK = b"fullbatch crc32 "
_DIGITS = 8
_END = b"PK\x05\x06"
_END_SIZE = 22
"""Bytes of the end-of-directory record of ZIP, whose last two are the length of the comment after it."""


class DamagedError(ValueError):
    """A file is damaged or truncated."""


def damaged(path: Path, reason: str) -> DamagedError:
    """Return the error of a damaged file, which names its previous version if there is one."""
    message = f"{path}: damaged or truncated ({reason}); the file is left untouched"
    return DamagedError("; the previous version is ".join([message, *map(str, versions(path)[1:2])]))


def write_archive(path: Path, content: Any, *, keep: int = 0) -> None:
    """Save plain containers and tensors atomically, with a checksum; ``keep`` as in ``write_atomically``."""
    buffer = io.BytesIO()  # so that a full disk raises an OSError of the file system, not an error of torch
    torch.save(content, buffer)
    buffer.seek(-2, io.SEEK_END)
    buffer.write(struct.pack("<H", len(_MARK) + _DIGITS))
    buffer.write(_MARK)
    buffer.write(_checksum(buffer.getbuffer()))
    write_atomically(path, buffer.getbuffer(), keep=keep)


def read_verified(path: Path) -> bytes:
    """Return the content of a file; archives are checked for damage, other formats are returned as they are.

    Raises:
        DamagedError: An archive differs from its checksum, or from those of its entries.
    """
    content = path.read_bytes()
    start = max(len(content) - _DIGITS, 0)
    if content.endswith(_MARK, 0, start):
        if _checksum(memoryview(content)[:start]) != content[start:]:
            raise damaged(path, "its checksum differs")
    elif content.startswith(b"PK"):
        reason = _damage(content)
        if reason is not None:
            raise damaged(path, reason)
    return content


def _checksum(content: memoryview) -> bytes:
    return b"%08x" % zlib.crc32(content)


def _damage(content: bytes) -> str | None:
    """Return what is wrong with an archive without a checksum over the whole file, or None."""
    end = content[-_END_SIZE:]
    if not end.startswith(_END) or end[-2:] != b"\0\0":
        return "its end is missing"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(content):
                return "its entries are larger than the file"
            wrong = archive.testzip()
    except Exception as error:  # zipfile raises errors of many kinds for damaged directories
        return str(error) or type(error).__name__
    return None if wrong is None else f"the checksum of {wrong} differs"
