"""Archives with a checksum: ordinary archives of ``torch.save``, in which damage is detected wherever it is."""

import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fullbatch.models.model_file import read_pickle
from fullbatch.runtime.archives import DamagedError, read_verified, write_archive

CONTENT = {"weight": torch.arange(300, dtype=torch.float64), "step": 3, "names": ["a", "b"]}


def same(content: Any) -> bool:
    return torch.equal(content.pop("weight"), CONTENT["weight"]) and content == {"step": 3, "names": ["a", "b"]}


def flipped(content: bytes, position: int) -> bytes:
    """Return the content with one bit flipped."""
    changed = bytearray(content)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


def test_it_is_an_archive_that_torch_and_zip_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    write_archive(path, CONTENT)
    assert same(torch.load(path, weights_only=True))
    assert same(torch.load(path, weights_only=True, mmap=True))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert read_verified(path) == path.read_bytes()


def assert_detected(path: Path, num: int, write: Callable[[Path, Any], None], accepted: bool) -> None:
    """Flip ``num`` random bits, one at a time, and each bit at both ends; ``accepted`` only if it changes nothing."""
    write(path, CONTENT)
    content, chance = path.read_bytes(), random.Random(0)
    size = 8 * len(content)
    for position in (*range(64), *(chance.randrange(size) for _ in range(num)), *range(size - 640, size)):
        path.write_bytes(flipped(content, position))
        try:
            read = read_pickle(path)
        except DamagedError:
            continue
        assert accepted
        assert same(read)


def test_any_flipped_bit_is_detected(tmp_path: Path) -> None:
    assert_detected(tmp_path / "x.pth", 100, write_archive, accepted=False)


@pytest.mark.soak
def test_many_flipped_bits_are_detected(tmp_path: Path) -> None:
    assert_detected(tmp_path / "x.pth", 20_000, write_archive, accepted=False)


def test_flipped_bits_change_no_number_in_archives_without_a_checksum(tmp_path: Path) -> None:
    assert_detected(tmp_path / "x.pth", 200, lambda path, content: torch.save(content, path), accepted=True)


@pytest.mark.parametrize("write", [write_archive, lambda path, content: torch.save(content, path)])
def test_truncated_overwritten_and_extended_archives_are_damaged(
    tmp_path: Path, write: Callable[[Path, Any], None]
) -> None:
    path = tmp_path / "x.pth"
    write(path, CONTENT)
    content = path.read_bytes()
    cuts = [content[:length] for length in (0, 1, 3, 30, 1000, -1000, -46, -25, -24, -22, -8, -1)]
    for spoiled in (*cuts, bytes(len(content)), content + b"\0", content[:-2000] + bytes(2000)):
        path.write_bytes(spoiled)
        with pytest.raises(DamagedError, match="damaged or truncated"):
            read_pickle(path)
        assert path.read_bytes() == spoiled


def test_an_archive_whose_entries_are_larger_than_the_file_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data/0", bytes(10_000_000))
    with pytest.raises(DamagedError, match="its entries are larger than the file"):
        read_verified(path)
