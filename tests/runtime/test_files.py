"""Atomic files: complete at every moment, with the requested number of previous versions."""

import errno
import os
import re
from pathlib import Path

import pytest

from fullbatch.runtime import files
from fullbatch.runtime.files import format_bytes, format_error, move, previous_paths, write_atomically


def test_predecessors_are_kept_newest_first(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.pth"
    for number in range(5):
        write_atomically(path, b"%d" % number, keep=2)
    assert path.read_bytes() == b"4"
    assert [p.read_bytes() for p in previous_paths(path, 2)] == [b"3", b"2"]
    assert [p.name for p in previous_paths(path, 2)] == ["x.previous.pth", "x.previous1.pth"]
    assert len(list(path.parent.iterdir())) == 3


def test_no_previous_file_is_kept_by_default(tmp_path: Path) -> None:
    for content in (b"a", b"b"):
        write_atomically(tmp_path / "x", content)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failure_at_any_point_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "x.pth"
    write_atomically(path, b"old", keep=1)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail) if broken == "fsync" else monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new", keep=1)
    assert path.read_bytes() == b"old"
    assert not list(tmp_path.glob(".*"))


def test_the_file_reaches_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (events.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append("replace"), replace(self, to))[1])
    write_atomically(tmp_path / "x", b"content")
    assert events == ["fsync", "replace", "fsync"]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"valuable")
    (tmp_path / ".x.writing").symlink_to(other)
    write_atomically(tmp_path / "x", b"content")
    assert (other.read_bytes(), (tmp_path / "x").read_bytes()) == (b"valuable", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "x"]


def test_a_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "x", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_an_error_of_the_disk_names_the_file_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="x") as error:
        write_atomically(tmp_path / "x", b"new")
    assert re.fullmatch(rf"{tmp_path}/x: [a-z].* \(.*(folder|command).*\)", format_error(error.value))


def test_file_systems_without_links_get_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", refuse)
    path = tmp_path / "x.pth"
    for content in (b"a", b"b"):
        write_atomically(path, content, keep=1)
    assert (path.read_bytes(), previous_paths(path, 1)[0].read_bytes()) == (b"b", b"a")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_file_moves_also_to_another_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    replace = Path.replace

    def refusing(self: Path, target: Path) -> Path:
        if self.name == "x" and elsewhere:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refusing)
    (tmp_path / "x").write_bytes(b"content")
    move(tmp_path / "x", tmp_path / "y")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("y", b"content")]
    with pytest.raises(FileNotFoundError):
        move(tmp_path / "nothing", tmp_path / "z")


def test_bytes_have_a_unit_that_fits() -> None:
    assert [format_bytes(n) for n in (3840, 0.4 * 2**20, 2**30, 3 * 2**31)] == [
        "3.8 KiB",
        "0.4 MiB",
        "1.0 GiB",
        "6.0 GiB",
    ]
