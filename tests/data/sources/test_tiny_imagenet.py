"""Tiny ImageNet from a folder, an archive or a server; a tiny archive stands in for it, without network."""

import hashlib
import io
import os
import signal
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from serving import serve

from fullbatch.data.dataset import ImageData, ImageRequest, ImageSet, load_images
from fullbatch.data.sources import tiny_imagenet
from fullbatch.runtime.stop_requests import InterruptedWork, interruption

CLASSES = ("n01443537", "n02099601", "n07920052")
PER_CLASS, VALID = 4, 7
FOLDER = "tiny-imagenet-200"


def image(number: int, gray: bool = False) -> bytes:
    """A JPEG of 64x64."""
    values = np.random.default_rng(number).integers(0, 256, (8, 8) if gray else (8, 8, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(values).resize((64, 64)).save(content, "JPEG")
    return content.getvalue()


def decoded(content: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(content)) as opened:
        return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)


def files() -> dict[str, bytes]:
    """The layout of the real archive; one training and one validation image are gray."""
    made: dict[str, bytes] = {
        "wnids.txt": "".join(f"{name}\n" for name in reversed(CLASSES)).encode(),  # not sorted, as in the real one
        "words.txt": b"n01443537\tgoldfish, Carassius auratus\n",
    }
    for label, name in enumerate(CLASSES):
        made[f"train/{name}/{name}_boxes.txt"] = b"no"
        for number in range(PER_CLASS):
            content = image(10 * label + number, gray=(label, number) == (1, 2))
            made[f"train/{name}/images/{name}_{number}.JPEG"] = content
    for number in range(VALID):
        made[f"val/images/val_{number}.JPEG"] = image(100 + number, gray=number == 3)
    made["val/val_annotations.txt"] = "".join(
        f"val_{number}.JPEG\t{CLASSES[-1 - number % 3]}\t0\t32\t44\t62\n" for number in reversed(range(VALID))
    ).encode()
    made["test/images/test_0.JPEG"] = image(200)
    return made


@dataclass(frozen=True)
class Fake:
    archive: Path

    def load(self, root: Path, **settings: Any) -> ImageData:
        return load_images("TinyImageNet", ImageRequest(str(root), **settings))


def zipped(path: Path, content: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in content.items():
            archive.writestr(f"{FOLDER}/{name}", part)
        archive.writestr(f"{FOLDER}/", b"")
        for name in (
            "../escaped",
            "/escaped",
            f"{FOLDER}/../escaped",
            f"{FOLDER}/train/../../escaped",
            "other/wnids.txt",
        ):
            archive.writestr(name, b"no")
        archive.writestr(f"{FOLDER}/train/n1/images/../../../../n1_1.JPEG", b"no")
    return path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return believed(zipped(tmp_path / "origin" / "tiny-imagenet-200.zip", files()), monkeypatch)


def believed(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    digest, nowhere = hashlib.md5(archive.read_bytes()).hexdigest(), "http://127.0.0.1:9/tiny-imagenet-200.zip"
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", replace(tiny_imagenet.ARCHIVE, url=nowhere, md5=digest))
    return Fake(archive)


@pytest.fixture
def served(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve(fake.archive.parent) as address:
        yield address


def put(made: Fake, root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    target = root / made.archive.name
    target.write_bytes(made.archive.read_bytes())
    return target


def unpacked(root: Path, **changed: bytes | None) -> Path:
    """The folder as a user unpacks it, with some files changed or left out."""
    for name, content in {**files(), **changed}.items():
        if content is not None:
            (root / FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
            (root / FOLDER / name).write_bytes(content)
    return root


def labels_of(part: ImageSet) -> dict[bytes, int]:
    images = part.images.fetch(torch.arange(len(part)))
    return {bytes(one.numpy()): int(label) for one, label in zip(images, part.labels, strict=True)}


def check(data: ImageData) -> None:
    made = files()
    train = {
        bytes(decoded(made[f"train/{name}/images/{name}_{number}.JPEG"]).contiguous().numpy()): label
        for label, name in enumerate(CLASSES)
        for number in range(PER_CLASS)
    }
    valid = {
        bytes(decoded(made[f"val/images/val_{number}.JPEG"]).contiguous().numpy()): 2 - number % 3
        for number in range(VALID)
    }
    assert data.classes == data.valid.classes == CLASSES
    assert (data.channels, data.pixels) == (3, 64)
    assert labels_of(data.train) == train
    assert labels_of(data.valid) == valid


def names_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_the_checksum_and_the_address_are_the_official_ones() -> None:
    archive = tiny_imagenet.ARCHIVE
    assert (archive.filename, archive.md5) == ("tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")
    assert archive.url == "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def test_an_archive_in_the_folder_is_unpacked_once(fake: Fake, tmp_path: Path) -> None:
    archive = put(fake, tmp_path / "data")
    check(fake.load(tmp_path / "data", download=False))
    archive.unlink()
    check(fake.load(tmp_path / "data", download=False))  # the folder itself is enough


def test_only_what_belongs_to_the_set_is_unpacked(fake: Fake, tmp_path: Path) -> None:
    put(fake, tmp_path / "data")
    fake.load(tmp_path / "data")
    wanted = {f"{FOLDER}/{name}" for name in files() if "boxes" not in name and "test" not in name}
    assert names_below(tmp_path / "data") == {*wanted, fake.archive.name}
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_folder_that_the_user_unpacked_serves(tmp_path: Path) -> None:
    check(load_images("tinyimagenet", ImageRequest(str(unpacked(tmp_path)), download=False)))


def test_it_comes_from_a_mirror_or_an_address(fake: Fake, served: str, tmp_path: Path) -> None:
    check(fake.load(tmp_path / "one", mirrors=[str(fake.archive.parent)], download=False))
    check(fake.load(tmp_path / "two", mirrors=[f"file://{fake.archive}"], download=False))
    check(fake.load(tmp_path / "three", mirrors=[served]))
    assert (tmp_path / "three" / fake.archive.name).read_bytes() == fake.archive.read_bytes()
    check(fake.load(tmp_path / "four", mirrors=[f"{served}/{fake.archive.name}"]))


def test_a_smaller_size_is_class_balanced_and_mixed(fake: Fake, tmp_path: Path) -> None:
    put(fake, tmp_path / "data")
    whole = labels_of(fake.load(tmp_path / "data").train)
    data = fake.load(tmp_path / "data", size=6, valid_size=3)
    assert data.train.labels.bincount().tolist() == [2, 2, 2]
    assert data.valid.labels.bincount().tolist() == [1, 1, 1]
    assert labels_of(data.train).items() <= whole.items()
    assert labels_of(fake.load(tmp_path / "data", size=3).train).items() <= labels_of(data.train).items()
    assert labels_of(fake.load(tmp_path / "data", size=6, subset_seed=5).train) != labels_of(data.train)
    assert data.train.labels.tolist() != sorted(data.train.labels.tolist())


def test_statistics_are_those_of_the_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = load_images("TinyImageNet", ImageRequest(str(unpacked(tmp_path))))
    values = data.train.images.fetch(torch.arange(12)).double() / 255
    assert data.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert data.std == pytest.approx(values.transpose(0, 1).flatten(1).std(1, correction=0).tolist(), rel=1e-12)


# What is refused


def test_a_wrong_checksum_is_refused_and_nothing_is_unpacked(fake: Fake, served: str, tmp_path: Path) -> None:
    archive = put(fake, tmp_path / "data")
    archive.write_bytes(b"foreign" + archive.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"tiny-imagenet-200\.zip \(md5 [0-9a-f]{32} instead of .*data.mirrors"):
        fake.load(tmp_path / "data", download=False, mirrors=[served])
    assert names_below(tmp_path / "data") == {archive.name}


@pytest.mark.parametrize("damage", ["truncated", "bit"])
def test_a_damaged_archive_leaves_no_folder(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    archive = put(fake, tmp_path / "data")
    content = bytearray(archive.read_bytes())
    place = content.index(files()["val/images/val_5.JPEG"]) + 300
    content[place] ^= 1
    archive.write_bytes(content if damage == "bit" else content[:-200])
    believed(archive, monkeypatch)  # the checksum cannot tell
    with pytest.raises(FileNotFoundError, match=r"its archive was not found: .*(Bad CRC-32|not a zip file)"):
        fake.load(tmp_path / "data", download=False)
    assert names_below(tmp_path / "data") == {archive.name}
    assert [path.name for path in (tmp_path / "data").iterdir()] == [archive.name]


def test_two_processes_may_unpack_at_once(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(fake, tmp_path / "data")
    unpack = tiny_imagenet._unpack

    def late(root: Path, archive: Path) -> None:
        unpack(root, archive)  # the other process
        unpack(root, archive)

    monkeypatch.setattr(tiny_imagenet, "_unpack", late)
    check(fake.load(tmp_path / "data"))
    assert not list((tmp_path / "data").glob(".unpacking*"))


def test_a_signal_stops_downloading_and_unpacking(fake: Fake, served: str, tmp_path: Path) -> None:
    with interruption() as caught:
        caught.receive(signal.SIGTERM, None)
        with pytest.raises(InterruptedWork, match="stopped while downloading"):
            fake.load(tmp_path / "one", mirrors=[served])
        archive = put(fake, tmp_path / "two")
        with pytest.raises(InterruptedWork, match="stopped while unpacking"):
            fake.load(tmp_path / "two")
    assert list((tmp_path / "one").iterdir()) == []
    assert list((tmp_path / "two").iterdir()) == [archive]


ANNOTATIONS = files()["val/val_annotations.txt"]
WRONG: dict[str, dict[str, bytes | None]] = {
    r"val/val_annotations\.txt: the file is missing": {"val/val_annotations.txt": None},
    r"val/val_annotations\.txt: it is not text": {"val/val_annotations.txt": b"\xff\xfe"},
    r"line 2 has the unknown class 'n9' for 'val_5\.JPEG'": {
        "val/val_annotations.txt": ANNOTATIONS.replace(b"val_5.JPEG\tn01443537", b"val_5.JPEG\tn9")
    },
    r"line 8 has the unknown class '' for 'val_99\.JPEG'": {"val/val_annotations.txt": ANNOTATIONS + b"val_99.JPEG\n"},
    r"val_annotations\.txt: val_9\.JPEG is not in the folder images": {
        "val/val_annotations.txt": ANNOTATIONS + b"val_9.JPEG\tn01443537\n"
    },
    r"val_annotations\.txt: val_8\.JPEG is not listed": {"val/images/val_8.JPEG": image(1)},
    r"wnids\.txt: the file is missing": {"wnids.txt": None},
    r"wnids\.txt: its classes are not the folders in train \(n02099601\)": {"wnids.txt": b"n01443537\nn07920052\n"},
    r"wnids\.txt: .* \(n5\)": {"wnids.txt": files()["wnids.txt"] + b"n5\n"},
    r"n01443537_1\.JPEG: not a readable image \(the file is empty": {"train/n01443537/images/n01443537_1.JPEG": b""},
}


@pytest.mark.parametrize(("message", "change"), WRONG.items(), ids=range(len(WRONG)))
def test_a_folder_that_is_not_whole_is_named_and_stays(
    tmp_path: Path, message: str, change: dict[str, bytes | None]
) -> None:
    before = names_below(unpacked(tmp_path, **change))
    with pytest.raises(OSError, match=message):
        load_images("TinyImageNet", ImageRequest(str(tmp_path), download=False))
    assert names_below(tmp_path) == before


def test_missing_folders_are_named(tmp_path: Path) -> None:
    root = unpacked(tmp_path) / FOLDER
    for name in ("val/images", "train/n02099601/images", "train"):
        os.rename(root / name, root / "moved")
        with pytest.raises(OSError, match=f"{name}: the folder is missing|wnids.txt: its classes are not .*train"):
            load_images("TinyImageNet", ImageRequest(str(tmp_path), download=False))
        os.rename(root / "moved", root / name)


def test_settings_that_contradict_the_set_are_named(tmp_path: Path) -> None:
    for settings, message in [
        ({"path": None}, "data.path: blank; TinyImageNet needs the folder"),
        ({"classes": 200}, "data.classes=200: TinyImageNet has classes=3"),
        ({"pixels": 32}, "data.pixels=32: TinyImageNet has pixels=64"),
        ({"channels": 1}, "data.channels=1"),
        ({"size": 13}, "data.size=13: the training set has 12 images"),
        ({"valid_size": 8}, "data.valid_size=8: the validation set has 7 images"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_images("TinyImageNet", ImageRequest(**{"path": str(unpacked(tmp_path)), **settings}))
