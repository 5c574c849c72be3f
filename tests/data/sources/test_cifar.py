"""CIFAR: found, unpacked or fetched, never opened without its checksum. A tiny archive stands in; no network."""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from serving import serve

from fullbatch.data.dataset import ImageData, ImageRequest, ImageSet, load_images

NOWHERE = "http://127.0.0.1:9/cifar.tar.gz"  # the discard port: refused at once
SIZES = {"CIFAR10": (10, 7), "CIFAR100": (12, 5)}
LABELS = {"CIFAR10": "labels", "CIFAR100": "fine_labels"}


@dataclass(frozen=True)
class Fake:
    """An archive of a few random images, whose checksums torchvision now believes in."""

    name: str
    archive: Path
    images: np.ndarray
    labels: list[int]

    @property
    def md5(self) -> str:
        return hashlib.md5(self.archive.read_bytes()).hexdigest()

    def load(self, root: Path, **settings: Any) -> ImageData:
        return load_images(self.name, ImageRequest(str(root), **settings))


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3072), dtype=np.uint8)


@pytest.fixture(params=["CIFAR10", "CIFAR100"])
def fake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return make_fake(request.param, tmp_path / "origin", monkeypatch)


@pytest.fixture
def fake10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return make_fake("CIFAR10", tmp_path / "origin", monkeypatch)


def make_fake(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    source = getattr(torchvision.datasets, name)
    train, valid = SIZES[name]
    images, labels = random_images(train + valid), [index % 10 for index in range(train + valid)]
    cuts = {"one": (0, 4), "two": (4, train), "last": (train, train + valid)}
    contents = {
        file: pickle.dumps({"data": images[start:stop], LABELS[name]: labels[start:stop]})
        for file, (start, stop) in cuts.items()
    }
    contents["names"] = pickle.dumps({source.meta["key"]: [f"class {index}" for index in range(10)]})
    digests = {file: hashlib.md5(content).hexdigest() for file, content in contents.items()}
    folder.mkdir()
    with tarfile.open(folder / source.filename, "w:gz") as tar:
        for path, content in {f"{source.base_folder}/{file}": content for file, content in contents.items()}.items():
            tar.addfile(entry(path, content), io.BytesIO(content))
        for path in (f"{source.base_folder}/readme.html", "../escaped", "/escaped", "other/names"):
            tar.addfile(entry(path, b"no"), io.BytesIO(b"no"))
    made = Fake(name, folder / source.filename, images.reshape(-1, 3, 32, 32), labels)
    monkeypatch.setattr(source, "train_list", [["one", digests["one"]], ["two", digests["two"]]])
    monkeypatch.setattr(source, "test_list", [["last", digests["last"]]])
    monkeypatch.setattr(source, "meta", {**source.meta, "filename": "names", "md5": digests["names"]})
    monkeypatch.setattr(source, "tgz_md5", made.md5)
    monkeypatch.setattr(source, "url", NOWHERE)
    return made


def entry(path: str, content: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.size = len(content)
    return info


@pytest.fixture
def served(fake10: Fake, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the folder of the archive on this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve(fake10.archive.parent) as address:
        yield address


def check(data: ImageData, made: Fake) -> None:
    train, valid = SIZES[made.name]
    halves: tuple[tuple[ImageSet, slice], ...] = (
        (data.train, slice(0, train)),
        (data.valid, slice(train, train + valid)),
    )
    for found, where in halves:
        assert found.labels.tolist() == made.labels[where]
        expected = torch.from_numpy(made.images[where])
        assert torch.equal(found.images.fetch(torch.arange(len(found))), expected)


def put(made: Fake, root: Path) -> Path:
    root.mkdir(exist_ok=True)
    target = root / made.archive.name
    target.write_bytes(made.archive.read_bytes())
    return target


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_an_archive_in_the_folder_is_unpacked_once(fake: Fake, tmp_path: Path) -> None:
    archive = put(fake, tmp_path / "data")
    check(fake.load(tmp_path / "data", download=False), fake)
    archive.unlink()
    check(fake.load(tmp_path / "data", download=False), fake)  # the files themselves are enough


def test_only_the_files_of_the_data_set_are_unpacked(fake: Fake, tmp_path: Path) -> None:
    base = getattr(torchvision.datasets, fake.name).base_folder
    put(fake, tmp_path / "data")
    fake.load(tmp_path / "data")
    assert files_below(tmp_path / "data") == sorted(
        [fake.archive.name, *(f"{base}/{name}" for name in ("last", "names", "one", "two"))]
    )
    assert not (tmp_path / "escaped").exists()


def test_classes_shape_and_statistics(fake10: Fake, tmp_path: Path) -> None:
    put(fake10, tmp_path / "data")
    data = fake10.load(tmp_path / "data")
    assert data.classes == tuple(f"class {index}" for index in range(10))
    assert (data.channels, data.pixels) == (3, 32)
    values = fake10.images[:10].transpose(1, 0, 2, 3).reshape(3, -1) / 255.0
    np.testing.assert_allclose(data.mean, values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(data.std, values.std(1), rtol=1e-12)


def test_a_home_folder_is_expanded(fake10: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(fake10, tmp_path / "data")
    check(load_images("cifar10", ImageRequest("~/data")), fake10)


def test_size_takes_the_first_samples(fake: Fake, tmp_path: Path) -> None:
    put(fake, tmp_path / "data")
    data = fake.load(tmp_path / "data", size=6, valid_size=2, subset_seed=9)
    train, _ = SIZES[fake.name]
    assert torch.equal(data.train.images.fetch(torch.arange(6)), torch.from_numpy(fake.images[:6]))
    assert data.train.labels.tolist() == fake.labels[:6]
    assert data.valid.labels.tolist() == fake.labels[train : train + 2]
    assert len(data.train.images) == 6


@pytest.mark.parametrize("form", ["{folder}", "{archive}", "file://{folder}", "file://{archive}"])
def test_a_local_mirror_is_a_folder_or_the_archive(fake10: Fake, tmp_path: Path, form: str) -> None:
    mirror = form.format(folder=fake10.archive.parent, archive=fake10.archive)
    check(fake10.load(tmp_path / "new" / "data", mirrors=["/no/such/place", mirror], download=False), fake10)
    assert fake10.archive.exists()


@pytest.mark.parametrize("suffix", ["", "/", "/{name}", "/{name}?key=1"])
def test_a_mirror_is_an_address(fake10: Fake, served: str, tmp_path: Path, suffix: str) -> None:
    mirror = served + suffix.format(name=fake10.archive.name)
    check(fake10.load(tmp_path / "data", mirrors=[mirror]), fake10)
    assert (tmp_path / "data" / fake10.archive.name).read_bytes() == fake10.archive.read_bytes()


def test_the_official_address_comes_before_the_mirrors(
    fake10: Fake, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{served}/{fake10.archive.name}")
    check(fake10.load(tmp_path / "data", mirrors=[f"{served}/missing"]), fake10)


def test_a_download_with_a_wrong_checksum_leaves_nothing(
    fake10: Fake, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(FileNotFoundError, match=f"{served}/.*md5 {fake10.md5} instead of {'0' * 32}"):
        fake10.load(tmp_path / "data", mirrors=[served])
    assert files_below(tmp_path / "data") == []


def test_a_download_that_breaks_off_leaves_nothing(fake10: Fake, served: str, tmp_path: Path) -> None:
    whole = fake10.archive.read_bytes()
    fake10.archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileNotFoundError, match="incomplete or a different file"):
        fake10.load(tmp_path / "data", mirrors=[served])
    assert files_below(tmp_path / "data") == []


def test_a_local_archive_with_a_wrong_checksum_is_refused_and_left_alone(fake10: Fake, tmp_path: Path) -> None:
    archive = put(fake10, tmp_path / "data")
    archive.write_bytes(b"foreign")
    with pytest.raises(FileNotFoundError, match=r"cifar-10-python.tar.gz \(md5 [0-9a-f]{32} instead of"):
        fake10.load(tmp_path / "data", download=False)
    assert archive.read_bytes() == b"foreign"
    assert files_below(tmp_path / "data") == [archive.name]


def test_a_damaged_file_is_restored_from_the_archive(fake10: Fake, tmp_path: Path) -> None:
    put(fake10, tmp_path / "data")
    fake10.load(tmp_path / "data")
    (tmp_path / "data" / "cifar-10-batches-py" / "two").write_bytes(b"damaged")
    check(fake10.load(tmp_path / "data", download=False), fake10)


@pytest.mark.parametrize("file", ["one", "last", "names"])
def test_a_foreign_pickle_is_never_opened(
    fake10: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    archive = put(fake10, tmp_path / "data")
    fake10.load(tmp_path / "data")
    archive.unlink()
    evil = tmp_path / "data" / "cifar-10-batches-py" / file
    evil.write_bytes(pickle.dumps(Evil(tmp_path / "opened")))
    before = evil.read_bytes()
    with pytest.raises(FileNotFoundError, match=r"is missing or damaged"):
        fake10.load(tmp_path / "data", download=False)
    assert not (tmp_path / "opened").exists()
    assert evil.read_bytes() == before


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_without_download_no_address_is_asked(fake10: Fake, served: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data.download=False, so nothing was downloaded") as caught:
        fake10.load(tmp_path / "data", download=False, mirrors=[served])
    assert served not in str(caught.value)


def test_a_failure_says_what_was_tried_and_what_to_do(fake10: Fake, served: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    with pytest.raises(FileNotFoundError) as caught:
        fake10.load(root, mirrors=[f"{served}/missing", str(tmp_path / "usb")])
    message = str(caught.value)
    tried = (f"{root}/cifar-10-python.tar.gz (no such file)", f"{tmp_path}/usb/cifar-10-python.tar.gz (no such file)")
    places = (NOWHERE, f"{served}/missing/cifar-10-python.tar.gz (HTTP Error 404")
    todo = (f"(md5 {fake10.md5})", f"data.path={root}", f"into {root} and start again", "data.mirrors")
    for part in (*tried, *places, *todo):
        assert part in message
    assert "data.download" not in message


def test_an_odd_mirror_is_one_more_failure(fake10: Fake, tmp_path: Path) -> None:
    for mirror in ["htp://a.b/c", "http://", "http://127.0.0.1:x", "ftp://127.0.0.1:9/x.tgz"]:
        with pytest.raises(FileNotFoundError, match=f"{mirror}.* name its folder or address in data.mirrors"):
            fake10.load(tmp_path / "data", mirrors=[mirror])


def test_a_mirror_that_is_no_address_is_named(fake10: Fake, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.mirrors: http://\[ is neither an address nor a path"):
        fake10.load(tmp_path / "data", mirrors=["http://["])


def test_settings_that_contradict_the_set_are_named(fake10: Fake, tmp_path: Path) -> None:
    for settings, message in [
        ({"path": None}, "data.path: blank; CIFAR10 needs the folder"),
        ({"classes": 100}, "data.classes=100: CIFAR10 has classes=10"),
        ({"pixels": 64}, "data.pixels=64"),
        ({"channels": 1}, "data.channels=1"),
        ({"size": 11}, "data.size=11: the training set has 10 images"),
        ({"valid_size": 8}, "data.valid_size=8: the validation set has 7 images"),
    ]:
        put(fake10, tmp_path / "data")
        with pytest.raises(ValueError, match=message):
            load_images("CIFAR10", ImageRequest(**{"path": str(tmp_path / "data"), **settings}))


def test_a_folder_that_cannot_be_made_is_named(fake10: Fake, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"data.path={tmp_path}/file/data: the folder cannot be created"):
        fake10.load(tmp_path / "file" / "data")
