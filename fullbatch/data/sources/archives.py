"""Official archives, from the data folder, a mirror or the internet; they are verified before they are opened."""

import hashlib
import http.client
import logging
import tarfile
import tempfile
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fullbatch.data.images import ImageRequest
from fullbatch.runtime.files import expand_home
from fullbatch.runtime.stop_requests import stop_if_interrupted

_log = logging.getLogger(__name__)
_TIMEOUT = 30.0  # seconds without a byte
_SUFFIXES = (".tar.gz", ".tgz", ".zip")
_FAILURES = (
    *(OSError, ValueError, EOFError, http.client.HTTPException),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class Archive:
    """The archive of a data set: the set's name, and the file's name, address and MD5 (hexadecimal)."""

    name: str
    filename: str
    url: str
    md5: str


def data_folder(name: str, request: ImageRequest) -> Path:
    """Return ``data.path`` as a path; ``ValueError`` where it is blank."""
    if request.path is None:
        raise ValueError(f"data.path: blank; {name} needs the folder of its files")
    return expand_home(request.path, "data.path")


def obtain(archive: Archive, root: Path, request: ImageRequest, unpack: Callable[[Path], None]) -> None:
    """Call ``unpack`` with a verified archive from the first place that has one.

    Places are ``root``, the mirrors on this machine and, with ``data.download``, the official address and the other
    mirrors. Downloads are stored in ``root``.

    Raises:
        FileNotFoundError: no place has it; the message lists those tried and says what to do.
        OSError: ``root`` cannot be created.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"data.path={root}: the folder cannot be created ({error.strerror})") from error
    attempts = []
    for place in _places(archive, root, request):
        try:
            unpack(_fetch(archive, root, place))
        except _FAILURES as error:
            attempts.append(f"{place} ({error})")
            _log.info("%s: %s", place, error)
        else:
            _log.info("unpacked %s into %s", place, root)
            return
    not_downloaded = "" if request.download else " data.download=False, so nothing was downloaded."
    raise FileNotFoundError(
        f"data.path={root}: {archive.name} is missing or damaged, and its archive was not found: "
        f"{'; '.join(attempts)}.{not_downloaded} Put {archive.filename} (md5 {archive.md5}) from {archive.url} "
        f"into {root} and start again, or name its folder or address in data.mirrors."
    )


def _places(archive: Archive, root: Path, request: ImageRequest) -> list[str]:
    """Return paths and addresses of the archive in the order to try them: local ones first."""
    local, remote = [str(root / archive.filename)], [archive.url]
    for mirror in request.mirrors:
        try:
            parts = urllib.parse.urlsplit(mirror)
        except ValueError as error:
            raise ValueError(f"data.mirrors: {mirror} is neither an address nor a path ({error})") from error
        if "://" in mirror and parts.scheme != "file":
            whole = parts.path.endswith(_SUFFIXES)
            remote.append(mirror if whole else f"{mirror.rstrip('/')}/{archive.filename}")
        else:
            name = urllib.request.url2pathname(parts.path) if parts.scheme == "file" else mirror
            path = expand_home(name, "data.mirrors")
            local.append(str(path if path.name.endswith(_SUFFIXES) else path / archive.filename))
    return local + (remote if request.download else [])


def _fetch(archive: Archive, root: Path, place: str) -> Path:
    """Return the path of a verified archive, downloading it into ``root`` when ``place`` is an address."""
    if "://" not in place:
        _verify(Path(place), archive.md5)
        return Path(place)
    _log.info("downloading %s", place)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        part = Path(folder) / archive.filename
        with urllib.request.urlopen(place, timeout=_TIMEOUT) as response, part.open("wb") as target:
            while piece := response.read(1 << 20):
                stop_if_interrupted(f"stopped while downloading {place}; the incomplete file is removed")
                target.write(piece)
        _verify(part, archive.md5)
        return part.replace(root / archive.filename)  # atomic: other processes never see an incomplete file


def _verify(path: Path, expected: str) -> None:
    if not path.exists():
        raise FileNotFoundError("no such file")
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != expected:
        raise ValueError(f"md5 {digest.hexdigest()} instead of {expected}: incomplete or a different file")
