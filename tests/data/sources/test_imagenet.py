"""ImageNet: torchvision's folders, or made from archives that its reader believes in. Tiny ones stand in, offline."""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import imagenet

from fullbatch.data.dataset import ImageData, ImageRequest, ImageSet, load_images
from fullbatch.data.images import WholeImages

CLASSES = ("n01440764", "n02102040")
VALID = (1, 0, 0)  # classes of the validation images, in the order of their names


def image(number: int) -> bytes:
    values = np.random.default_rng(number).integers(0, 256, (9 + number, 20, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(values).save(content, "JPEG")
    return content.getvalue()


def files() -> dict[str, bytes]:
    train = {
        f"train/{name}/{name}_{number}.JPEG": image(10 * label + number)
        for label, name in enumerate(CLASSES)
        for number in range(4)
    }
    valid = {
        f"val/{CLASSES[label]}/ILSVRC2012_val_{number:08}.JPEG": image(number) for number, label in enumerate(VALID)
    }
    return train | valid


def write(root: Path, content: dict[str, bytes]) -> Path:
    for name, part in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(part)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "imagenet", files())


def load(root: Path, **options: Any) -> ImageData:
    return load_images("ImageNet", ImageRequest(**{"path": str(root), "mean": [0.5] * 3, "std": [0.2] * 3, **options}))


def tarred(content: dict[str, bytes], mode: str = "w") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as tar:  # type: ignore[call-overload]
        for name, part in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(part)
            tar.addfile(entry, io.BytesIO(part))
    return made.getvalue()


def devkit() -> bytes:
    from scipy.io import savemat

    fields = [("ILSVRC2012_ID", int), ("WNID", object), ("words", object), ("gloss", object), ("num_children", int)]
    synsets = [(number + 1, name, "a, b", "", 0) for number, name in enumerate(CLASSES)] + [(9, "n1", "c", "", 2)]
    content = io.BytesIO()
    savemat(content, {"synsets": np.array(synsets, dtype=fields)})
    truth = "".join(f"{label + 1}\n" for label in VALID).encode()
    data = {"meta.mat": content.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth}
    return tarred({f"ILSVRC2012_devkit_t12/data/{name}": part for name, part in data.items()}, "w:gz")


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three official archives, in small, which torchvision believes to be the real ones."""
    made = files()
    inner = {
        f"{name}.tar": tarred(
            {Path(path).name: part for path, part in made.items() if path.startswith(f"train/{name}")}
        )
        for name in CLASSES
    }
    content = {
        "train": tarred(inner),
        "val": tarred({Path(path).name: part for path, part in made.items() if path.startswith("val")}),
        "devkit": devkit(),
    }
    names = {part: imagenet.ARCHIVE_META[part][0] for part in content}
    digests = {part: (names[part], hashlib.md5(content[part]).hexdigest()) for part in content}
    monkeypatch.setattr(imagenet, "ARCHIVE_META", digests)
    return write(tmp_path / "archives", {names[part]: content[part] for part in content})


def sizes(part: ImageSet) -> list[tuple[int, int, int]]:
    """Class, height and width of each image."""
    assert isinstance(part.images, WholeImages)
    return sorted((int(label), *part.images.whole(index).shape[1:]) for index, label in enumerate(part.labels))


def check(data: ImageData) -> None:
    assert data.classes == data.valid.classes == CLASSES
    assert (data.channels, data.pixels) == (3, 224)
    assert sizes(data.train) == [(label, 9 + 10 * label + number, 20) for label in (0, 1) for number in range(4)]
    assert sizes(data.valid) == [(0, 10, 20), (0, 11, 20), (1, 9, 20)]


def test_folders_serve_as_they_are(root: Path) -> None:
    data = load(root, size=8)
    check(data)
    assert data.train.images.fetch(torch.arange(2)).shape == (2, 3, 224, 224)
    assert not isinstance(load(root, resize_on_read=True).train.images, WholeImages)


def test_a_smaller_size_is_class_balanced(root: Path) -> None:
    data = load(root, size=4, valid_size=2, pixels=32)
    assert data.train.labels.bincount().tolist() == [2, 2]
    assert data.valid.labels.tolist() == [0, 1]
    assert data.pixels == 32


def test_it_is_made_from_the_archives(archives: Path) -> None:
    check(load(archives))
    assert sorted(str(path.relative_to(archives)) for path in archives.rglob("*.JPEG")) == sorted(files())
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        (archives / name).unlink()
    check(load(archives))


def test_an_unfinished_unpacking_is_begun_again(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = imagenet.parse_train_archive

    def dying(root: Path, folder: str) -> None:
        parse(root, folder=folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(imagenet, "parse_train_archive", dying)
    with pytest.raises(KeyboardInterrupt):
        load(archives)
    assert not (archives / "train").exists()
    monkeypatch.setattr(imagenet, "parse_train_archive", parse)
    check(load(archives))
    assert not list(archives.glob(".*unpacking"))


def test_a_wrong_archive_is_refused(archives: Path) -> None:
    path = archives / "ILSVRC2012_img_val.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match=r"data\.path=.*ILSVRC2012_img_val\.tar is not present .* or is corrupted"):
        load(archives)
    assert not (archives / "val").exists()


def test_what_is_missing_is_named_and_where_to_get_it(tmp_path: Path, archives: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ImageNet is missing: .*folder train .*devkit_t12.*img_train\.tar"):
        load(tmp_path / "nowhere")
    load(archives)
    (archives / "val").rename(archives / "elsewhere")
    (archives / "ILSVRC2012_img_val.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither a folder val .* nor ILSVRC2012_img_val\.tar.*account"):
        load(archives)


def test_a_class_that_is_missing_in_a_split_is_named(root: Path) -> None:
    (root / "val" / CLASSES[1]).rename(root / "val" / "n03")
    with pytest.raises(ValueError, match=rf"val: its classes differ .*missing: {CLASSES[1]}; extra: n03"):
        load(root)


def test_settings_that_contradict_the_set_are_named(root: Path) -> None:
    for settings, message in [
        ({"path": None}, "data.path: blank; ImageNet needs the folder"),
        ({"channels": 1}, "data.channels=1"),
        ({"classes": 1000}, "data.classes=1000: .*imagenet has classes=2"),
        ({"size": 9}, "data.size=9: the training set has 8 images"),
        ({"mirrors": ["http://a"]}, "data.mirrors: the archives of ImageNet"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(root, **settings)
