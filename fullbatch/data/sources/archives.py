"""Official archives: found beside the data or at a mirror, or downloaded, and never opened without their checksum."""

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
    """A file that a data set is given away as: the set's name, the file's name, address and MD5 (hexadecimal)."""

    name: str
    filename: str
    url: str
    md5: str


def data_folder(name: str, request: ImageRequest) -> Path:
    """Return ``data.path`` as a path; ``ValueError`` where it is blank."""
    if request.path is None:
        raise ValueError(f"data.path: blank; {name} needs the folder where its files lie or are to be put")
    return Path(request.path).expanduser()


def obtain(archive: Archive, root: Path, request: ImageRequest, unpack: Callable[[Path], None]) -> None:
    """Call ``unpack`` with a verified copy of the archive, from the first place that has one.

    RunPaths are ``root``, then the mirrors on this machine; then, with ``data.download``, the official address and the
    other mirrors, from where the archive is first put into ``root``.

    Raises:
        FileNotFoundError: no place has it; the message says which were tried and what to do.
        OSError: ``root`` cannot be made.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"data.path={root}: the folder cannot be made ({error.strerror})") from error
    attempts = []
    for place in _places(archive, root, request):
        try:
            unpack(_fetched(archive, root, place))
        except _FAILURES as error:
            attempts.append(f"{place} ({error})")
            _log.info("%s: %s", place, error)
        else:
            _log.info("unpacked %s into %s", place, root)
            return
    forbidden = "" if request.download else " data.download=False, so nothing was downloaded."
    raise FileNotFoundError(
        f"data.path={root}: {archive.name} is not there (or damaged) and could not be had from: "
        f"{'; '.join(attempts)}.{forbidden} Get {archive.filename} (md5 {archive.md5}) from {archive.url}, put it "
        f"into {root} and start again; or give its folder or address as data.mirrors."
    )


def _places(archive: Archive, root: Path, request: ImageRequest) -> list[str]:
    """Paths and addresses of the archive in the order to try them: what costs nothing comes first."""
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
            path = Path(urllib.request.url2pathname(parts.path) if parts.scheme == "file" else mirror).expanduser()
            local.append(str(path if path.name.endswith(_SUFFIXES) else path / archive.filename))
    return local + (remote if request.download else [])


def _fetched(archive: Archive, root: Path, place: str) -> Path:
    """Return the path of a verified archive, downloading it into ``root`` when ``place`` is an address."""
    if "://" not in place:
        _verify(Path(place), archive.md5)
        return Path(place)
    _log.info("downloading %s", place)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        part = Path(folder) / archive.filename
        with urllib.request.urlopen(place, timeout=_TIMEOUT) as response, part.open("wb") as target:
            while piece := response.read(1 << 20):
                stop_if_interrupted(f"stopped while downloading {place}; nothing of it stays")
                target.write(piece)
        _verify(part, archive.md5)
        return part.replace(root / archive.filename)  # atomic: other processes see all of it or nothing


def _verify(path: Path, expected: str) -> None:
    if not path.exists():
        raise FileNotFoundError("no such file")
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != expected:
        raise ValueError(f"md5 {digest.hexdigest()} instead of {expected}: incomplete or another file")
