"""CIFAR-10 and CIFAR-100: torchvision's files, checksums and readers, found or fetched."""

import hashlib
import http.client
import logging
import os
import shutil
import tarfile
import tempfile
import urllib.parse
import urllib.request
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch

from fullbatch.data.pictures import (
    PictureData,
    PictureRequest,
    PictureSet,
    TensorPictures,
    check_found,
    choose_samples,
    picture_data,
)

_log = logging.getLogger(__name__)
_TIMEOUT = 30.0  # seconds without a byte
_ARCHIVES = (".tar.gz", ".tgz")
_FAILURES = (OSError, ValueError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error)


def load_cifar10(request: PictureRequest) -> PictureData:
    """Return CIFAR-10: 50,000 training and 10,000 validation pictures of 3 x 32 x 32; see ``load_cifar``."""
    return load_cifar("CIFAR10", 10, request)


def load_cifar100(request: PictureRequest) -> PictureData:
    """Return CIFAR-100: 50,000 training and 10,000 validation pictures of 3 x 32 x 32; see ``load_cifar``."""
    return load_cifar("CIFAR100", 100, request)


def load_cifar(name: str, classes: int, request: PictureRequest) -> PictureData:
    """Return one of torchvision's CIFAR classes by name; ``size`` and ``valid_size`` take the first samples.

    The files are used from ``data.path`` when they lie there; otherwise unpacked from an archive in ``data.path`` or
    one that ``data.mirrors`` names; otherwise, with ``data.download``, from torchvision's address and then from the
    mirrors. Whatever the place, only an archive with torchvision's checksum is opened, and torchvision checks every
    file again before it unpickles it.

    Raises:
        ValueError: settings that contradict the data set, or no ``data.path``.
        FileNotFoundError: the data are nowhere; the message says where they were looked for and what to do.
    """
    import torchvision.datasets  # noqa: PLC0415 (seconds to import)

    for key, given, found in (
        ("channels", request.channels, 3),
        ("classes", request.classes, classes),
        ("pixels", request.pixels, 32),
    ):
        check_found(key, given, found, name)
    if request.path is None:
        raise ValueError(f"data.path: blank; {name} needs the folder where its files lie or are to be put")
    source, root = getattr(torchvision.datasets, name), Path(request.path).expanduser()
    try:
        train = _read(source, root, True, request)
    except RuntimeError:  # torchvision: not found or corrupted
        _obtain(source, root, request)
        train = _read(source, root, True, request)
    return picture_data(train, _read(source, root, False, request), request, channels=3, pixels=32)


def _read(source: Any, root: Path, train: bool, request: PictureRequest) -> PictureSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy dislikes the age of the pickles
        data = source(root, train=train)
    labels = torch.tensor(data.targets, dtype=torch.int64)
    key, size = ("size", request.size) if train else ("valid_size", request.valid_size)
    used = len(choose_samples(labels, size, key, seed=None))
    pictures = torch.from_numpy(data.data.transpose(0, 3, 1, 2)).contiguous()  # stored channels first: no copy
    return PictureSet(TensorPictures(pictures[:used]), labels[:used], tuple(data.classes))


def _obtain(source: Any, root: Path, request: PictureRequest) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"data.path={root}: the folder cannot be made ({error.strerror})") from error
    attempts = []
    for place in _places(source, root, request):
        try:
            _unpack(source, _archive(source, root, place), root)
        except _FAILURES as error:
            attempts.append(f"{place} ({error})")
            _log.info("%s: %s", place, error)
        else:
            _log.info("unpacked %s into %s", place, root)
            return
    forbidden = "" if request.download else " data.download=False, so nothing was downloaded."
    raise FileNotFoundError(
        f"data.path={root}: {source.__name__} is not there (or damaged) and could not be had from: "
        f"{'; '.join(attempts)}.{forbidden} Get {source.filename} (md5 {source.tgz_md5}) from {source.url}, put it "
        f"into {root} and start again; or give its folder or address as data.mirrors."
    )


def _places(source: Any, root: Path, request: PictureRequest) -> list[str]:
    """Paths and addresses of the archive in the order to try them: what costs nothing comes first."""
    local, remote = [str(root / source.filename)], [source.url]
    for mirror in request.mirrors:
        try:
            parts = urllib.parse.urlsplit(mirror)
        except ValueError as error:
            raise ValueError(f"data.mirrors: {mirror} is neither an address nor a path ({error})") from error
        if "://" in mirror and parts.scheme != "file":
            whole = parts.path.endswith(_ARCHIVES)
            remote.append(mirror if whole else f"{mirror.rstrip('/')}/{source.filename}")
        else:
            path = Path(urllib.request.url2pathname(parts.path) if parts.scheme == "file" else mirror).expanduser()
            local.append(str(path if path.name.endswith(_ARCHIVES) else path / source.filename))
    return local + (remote if request.download else [])


def _archive(source: Any, root: Path, place: str) -> Path:
    """Return the path of a verified archive, downloading it into ``root`` when ``place`` is an address."""
    if "://" not in place:
        _verify(Path(place), source.tgz_md5)
        return Path(place)
    _log.info("downloading %s", place)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        part = Path(folder) / source.filename
        with urllib.request.urlopen(place, timeout=_TIMEOUT) as response, part.open("wb") as target:
            shutil.copyfileobj(response, target, 1 << 20)
        _verify(part, source.tgz_md5)
        return part.replace(root / source.filename)  # atomic: other processes see all of it or nothing


def _verify(path: Path, expected: str) -> None:
    if not path.exists():
        raise FileNotFoundError("no such file")
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != expected:
        raise ValueError(f"md5 {digest.hexdigest()} instead of {expected}: incomplete or another file")


def _unpack(source: Any, archive: Path, root: Path) -> None:
    files = {f"{source.base_folder}/{name}" for name, _ in (*source.train_list, *source.test_list)}
    files.add(f"{source.base_folder}/{source.meta['filename']}")
    (root / source.base_folder).mkdir(exist_ok=True)
    with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=root) as folder:
        for member in tar:
            name = os.path.normpath(member.name)
            content = tar.extractfile(member) if name in files else None
            if content is not None:
                part = Path(folder) / Path(name).name
                with content, part.open("wb") as target:
                    shutil.copyfileobj(content, target)
                part.replace(root / name)
