"""Files that stay intact in a crash, and messages about files."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADVICE = {
    errno.ENOSPC: "free some space, then repeat the command",
    errno.EDQUOT: "your quota is used up; free some space, then repeat the command",
    errno.EFBIG: "raise the limit of file sizes, ulimit -f, then repeat the command",
    errno.EROFS: "start the command in a folder that can be written",
}
"""Error number -> what to do about it."""
MAX_VERSIONS = 100
"""The number of previous versions that are looked for."""


def write_atomically(path: Path, content: bytes | memoryview, *, keep: int = 0) -> None:
    """Write a file atomically: at every moment ``path`` is the old or the new file, complete.

    The new file is written beside it, synchronized to the disk and renamed. The last ``keep`` versions stay as
    ``previous_paths``. An ``OSError`` of the file system leaves the old file intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.unlink(missing_ok=True)  # left by a crash, or a link that leads elsewhere
    try:
        with naming(path), temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _keep_previous(path, keep)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _synchronize_folder(path.parent)


def move(path: Path, target: Path) -> None:
    """Move a file, also to another file system; at every moment one of the two paths is the complete file."""
    try:
        path.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        write_atomically(target, path.read_bytes())
        path.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add ``path`` to an ``OSError`` that names no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def require_writable(path: Path) -> None:
    """Raise ``OSError`` where ``path`` cannot be written, before hours are spent on its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def format_error(error: BaseException) -> str:
    """Return the message of an error; for an error of the file system, 'file: what was wrong (what to do)'."""
    if not isinstance(error, OSError) or error.filename is None or not error.strerror:
        return str(error)
    advice = f" ({ADVICE[error.errno]})" if error.errno in ADVICE else ""
    return f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}{advice}"


def expand_home(path: str, key: str) -> Path:
    """Return ``path`` with the home folder in place of ``~``; ``ValueError`` names ``key`` where there is no home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{key}={path}: this user has no home folder; use a path without ~, or set HOME") from error


def format_bytes(number: float) -> str:
    """Return a number of bytes in MiB; below 0.1 MiB in KiB, and from 1 GiB on in GiB."""
    power, unit = (10, "KiB") if number < 0.1 * 2**20 else (20, "MiB") if number < 2**30 else (30, "GiB")
    return f"{number / 2**power:,.1f} {unit}"


def companion(path: Path, kind: str) -> Path:
    """Return the path beside ``path`` of another version of it."""
    return path.with_name(f"{path.stem}.{kind}{path.suffix}")


def previous_paths(path: Path, keep: int) -> list[Path]:
    """Return the paths of the ``keep`` previous versions of ``path``, the newest first."""
    return [companion(path, f"previous{number or ''}") for number in range(keep)]


def versions(path: Path) -> list[Path]:
    """Return the paths of a file and of its previous versions, as far as they exist, the newest first."""
    return [version for version in (path, *previous_paths(path, MAX_VERSIONS)) if version.exists()]


def _keep_previous(path: Path, keep: int) -> None:
    if keep == 0 or not path.exists():
        return
    kept = previous_paths(path, keep)
    for older, newer in zip(reversed(kept), reversed(kept[:-1]), strict=False):
        if newer.exists():
            newer.replace(older)
    kept[0].unlink(missing_ok=True)
    try:
        os.link(path, kept[0])  # ``path`` exists at every moment
    except OSError:  # a file system without hard links
        shutil.copy2(path, kept[0])


def _synchronize_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
