"""Files that a crash cannot tear."""

import os
import shutil
from pathlib import Path


def write_atomically(path: Path, content: bytes | memoryview, *, keep: int = 0) -> None:
    """Write a file so that at every moment ``path`` is the old file or the new one, whole.

    The new file is written beside it, synchronized to the disk and renamed. The ``keep`` files before it stay as
    ``previous_paths``. Raises ``OSError`` as the file system does, with nothing damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _keep_previous(path, keep)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _synchronize_folder(path.parent)


def previous_paths(path: Path, keep: int) -> list[Path]:
    """Return where the ``keep`` files before ``path`` are kept, the newest first."""
    return [path.with_name(f"{path.stem}.previous{number or ''}{path.suffix}") for number in range(keep)]


def _keep_previous(path: Path, keep: int) -> None:
    if keep == 0 or not path.exists():
        return
    kept = previous_paths(path, keep)
    for older, newer in zip(reversed(kept), reversed(kept[:-1]), strict=False):
        if newer.exists():
            newer.replace(older)
    kept[0].unlink(missing_ok=True)
    try:
        os.link(path, kept[0])  # both names at once: there is no moment without ``path``
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
