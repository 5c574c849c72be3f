"""The user's own images: listings, decoding, the cache of facts, and errors."""

import json
import logging
import math
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fullbatch.data.dataset import ImageData, ImageRequest, ImageSet, content_of_data, load_images
from fullbatch.data.sources import folder_cache, folder_images, image_folder
from fullbatch.data.sources.image_files import read_image, read_whole_image

CLASSES = ("bee", "cat", "dog")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fullbatch"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of 6 + 3 color images of 5x5 of every class."""
    return make_folder(tmp_path / "images")


def make_folder(root: Path, per_class: int = 6, pixels: int = 5, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for split, count in (("train", per_class), ("val", per_class // 2)):
        for name in reversed(CLASSES):
            for index in reversed(range(count)):
                save(root / split / name / f"{index}.png", rng.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8))
    return root


def save(path: Path, values: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def load(root: Path, **options: Any) -> ImageData:
    return load_images("imagefolder", ImageRequest(str(root), **options))


def everything(images: ImageSet) -> torch.Tensor:
    return images.images.fetch(torch.arange(len(images)))


def opened(path: Path, mode: str | None = None) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode) if mode else image)


def stored(root: Path, split: str) -> np.ndarray:
    paths = sorted((root / split).glob("*/*.png"))
    return np.stack([opened(path).transpose(2, 0, 1) for path in paths])


def refuse_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("an image is read")

    monkeypatch.setattr(folder_images, "read_image", refuse)
    monkeypatch.setattr(image_folder, "scan_images", refuse)


# Listings


@pytest.mark.parametrize("pixels", [5, 64])  # the larger files are decoded by several threads
def test_every_image_comes_once_with_the_label_of_its_folder(tmp_path: Path, pixels: int) -> None:
    root = make_folder(tmp_path / "images", pixels=pixels)
    data = load(root)
    assert data.classes == data.valid.classes == CLASSES
    for split, half, count in (("train", data.train, 6), ("val", data.valid, 3)):
        expected = {image.tobytes(): index // count for index, image in enumerate(stored(root, split))}
        found = everything(half).numpy()
        assert len(found) == len(expected) == 3 * count
        assert {image.tobytes(): int(label) for image, label in zip(found, half.labels, strict=True)} == expected


def test_training_images_are_mixed_and_validation_images_sorted(root: Path) -> None:
    data = load(root)
    assert np.array_equal(everything(data.valid), stored(root, "val"))
    assert all(len(block.unique()) > 1 for block in data.train.labels.split(6))  # no block of one class
    torch.manual_seed(1)
    assert torch.equal(everything(load(root).train), everything(data.train))
    other = load(root, subset_seed=1)
    assert not torch.equal(everything(other.train), everything(data.train))
    assert torch.equal(everything(other.valid), everything(data.valid))


def test_shape_mean_and_std_are_those_of_the_images(root: Path) -> None:
    data = load(root)
    assert (data.channels, data.pixels) == (3, 5)
    values = stored(root, "train").transpose(1, 0, 2, 3).reshape(3, -1) / 255.0
    np.testing.assert_allclose(data.mean, values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(data.std, values.std(1), rtol=1e-12)


def test_a_folder_test_serves_where_there_is_no_val(root: Path) -> None:
    expected = everything(load(root).valid)
    (root / "val").rename(root / "test")
    assert torch.equal(everything(load(root).valid), expected)
    make_folder(root, seed=1)  # a new 'val' beside 'test' comes first
    assert not torch.equal(everything(load(root).valid), expected)


def test_images_are_fetched_by_position(root: Path) -> None:
    data = load(root)
    ids = torch.tensor([17, 3, 3, 0])
    assert torch.equal(data.train.images.fetch(ids), everything(data.train)[ids])


def test_subsets_are_balanced_and_statistics_follow_them(root: Path) -> None:
    data = load(root, size=7, valid_size=3, subset_seed=2)
    assert sorted(data.train.labels.bincount().tolist()) == [2, 2, 3]
    assert data.valid.labels.tolist() == [0, 1, 2]
    values = everything(data.train).double().transpose(0, 1).flatten(1) / 255
    assert data.mean == pytest.approx(values.mean(1).tolist(), rel=1e-12)
    assert not torch.equal(everything(load(root, size=7, subset_seed=3).train), everything(data.train))
    assert load(root).mean != data.mean


def test_hidden_and_other_files_are_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = everything(load(root).train)
    for name in (".hidden.png", "notes.txt", "Thumbs.db"):
        (root / "train" / "cat" / name).write_text("no image")
    (root / "train" / "cat" / "folder.png").mkdir()
    (root / "train" / ".git").mkdir()
    (root / "train" / "readme.txt").touch()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(everything(load(root).train), expected)
    names = ".git, readme.txt, cat/.hidden.png, cat/Thumbs.db, cat/folder.png, ..."
    assert f"{root}/train: ignored what is hidden or not an image, 6 in all: {names}" in caplog.text


@pytest.mark.parametrize("name", ["画像", "images (2)", "a#b", "é", "a=1,b", " x", "100%25", "$HOME", "[a]"])
def test_any_name_of_a_folder_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    root = make_folder(tmp_path / name)
    data = load(root)
    assert (len(data.train), load(root).mean) == (18, data.mean)
    monkeypatch.setenv("HOME", str(root))
    assert load(Path("~")).mean == data.mean
    assert content_of_data("imagefolder", "~") == content_of_data("imagefolder", str(root))


@pytest.mark.parametrize(
    ("name", "key", "options"),
    [
        ("imagefolder", "data.path=~/x", {}),
        ("CIFAR10", "data.path=~/x", {}),
        ("TinyImageNet", "data.path=~/x", {}),
        ("ImageNet", "data.path=~/x", {}),
        ("CIFAR10", "data.mirrors=~/x", {"path": "here", "mirrors": ["~/x"], "download": False}),
    ],
)
def test_without_a_home_folder_the_key_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str, options: dict[str, Any]
) -> None:
    """As in a container whose user has no entry in /etc/passwd."""

    def refuse(_: object) -> NoReturn:
        raise KeyError

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", refuse)
    with pytest.raises(ValueError, match=f"^{key}: this user has no home folder; use a path without ~, or set HOME"):
        load_images(name, ImageRequest(**{"path": "~/x", **options}))
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert load(make_folder(tmp_path / "images")).pixels == 5


@pytest.mark.parametrize("place", ["train/cat", "val/dog", "train/cow", "train/cat/7.png"])
@pytest.mark.parametrize("itself", [False, True])
def test_a_link_that_leads_nowhere_is_no_class_and_no_image_less(root: Path, place: str, itself: bool) -> None:
    link = root / place
    if link.exists():
        shutil.rmtree(link)
    link.symlink_to(link.name if itself else "nowhere")
    with pytest.raises(OSError, match=rf"{link}: a link to {os.readlink(link)} \(.*\); repair or remove it"):
        load(root)


def test_names_may_be_capitals_and_folders_links(root: Path) -> None:
    expected = everything(load(root).train)
    (root / "train" / "cat" / "5.png").rename(root / "train" / "cat" / "5.PNG")
    (root / "train" / "dog").rename(root / "elsewhere")
    (root / "train" / "dog").symlink_to(root / "elsewhere", target_is_directory=True)
    assert torch.equal(everything(load(root).train), expected)


# Cache


def test_a_second_load_reads_no_image(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(root)
    assert len(list(cache.glob("*.json"))) == len(list(cache.iterdir())) == 1
    refuse_to_read(monkeypatch)
    second = load(root)
    assert (second.mean, second.std, second.channels, second.pixels) == (first.mean, first.std, 3, 5)
    with pytest.raises(AssertionError, match="an image is read"):
        everything(second.train)


def test_only_what_is_needed_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_read(monkeypatch)
    data = load(root, channels=1, pixels=3, mean=[0.5], std=[0.2])
    assert (data.mean, data.std, data.channels, data.pixels) == ((0.5,), (0.2,), 1, 3)


def test_mean_and_std_are_cached_for_each_shape(root: Path) -> None:
    shapes: list[dict[str, Any]] = [{}, {"channels": 1}, {"pixels": 3}, {"mean": [0.0] * 3, "std": [1.0] * 3}]
    first = [load(root, **shape).mean for shape in shapes]
    assert len(set(first)) == 4
    assert [load(root, **shape).mean for shape in shapes] == first


def change(path: Path) -> None:
    before = path.stat()
    save(path, 255 - opened(path))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def rename(path: Path) -> None:
    path.rename(path.with_name("zzz.png"))


@pytest.mark.parametrize("action", [change, Path.unlink, rename])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_change_of_the_folder_is_noticed(root: Path, cache: Path, action: object, split: str) -> None:
    load(root)
    assert callable(action)
    action(root / split / "cat" / "0.png")
    values = stored(root, "train").transpose(1, 0, 2, 3).reshape(3, -1) / 255.0
    np.testing.assert_allclose(load(root).mean, values.mean(1), rtol=1e-12)
    assert len(list(cache.iterdir())) == 2


def test_folders_that_differ_only_in_their_place_are_distinguished(tmp_path: Path) -> None:
    """Uncompressed images of equal names, sizes and times, as an archive unpacks them."""
    means = []
    for value in (10, 20):
        root = tmp_path / str(value)
        for path in ("train/a/0.bmp", "train/b/0.bmp", "val/a/0.bmp", "val/b/0.bmp"):
            noise = np.random.default_rng(0).integers(0, 9, (4, 4), dtype=np.uint8)
            os.utime(save(root / path, noise + np.uint8(value)), ns=(0, 0))
        means.append(load(root).mean[0] * 255)
    assert means[1] - means[0] == pytest.approx(10)


DAMAGE = [b"", b"{", b"[]", b"null", b"\xff\x00", b'{"channels": 3}', b"{}" * 9, b"[" * 100_000]


def test_a_damaged_file_of_the_cache_is_replaced(root: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    for content in DAMAGE:
        caplog.clear()
        first = load(root)
        (path,) = cache.iterdir()
        sound = path.read_bytes()
        path.write_bytes(content)
        assert load(root).mean == first.mean
        assert f"{path}: invalid, reading the images instead" in caplog.text
        assert path.read_bytes() == sound


SOUND = {"classes": CLASSES, "counts": (18, 9), "channels": 3, "pixels": 5, "statistics": ((0.5,) * 3, (0.2,) * 3)}
nonsense = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(SOUND)), nonsense)
@example("statistics", [[0.5] * 3])
@example("statistics", [])
@example("statistics", [[0.5] * 3, [math.nan] * 3])
@example("statistics", [[0.5] * 3, [0.5] * 2])
@example("channels", 1)
@example("pixels", math.inf)
def test_invalid_facts_in_the_cache_are_ignored(cache: Path, key: str, value: object) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "facts.json").write_text(json.dumps({**SOUND, key: value}))
    facts = folder_cache.read("facts")
    if facts is not None:
        assert facts.channels in (1, 3)
        assert facts.pixels >= 1
        assert facts.statistics is None or [len(values) for values in facts.statistics] == [facts.channels] * 2
        assert np.isfinite(facts.statistics or 0.0).all()


def test_cached_facts_that_contradict_the_folder_are_ignored(root: Path, cache: Path) -> None:
    """Else a poisoned cache would request terabytes."""
    expected = load(root)
    (path,) = cache.iterdir()
    sound = json.loads(path.read_text())
    for change in ({"pixels": 1_000_000}, {"counts": [1, 1]}, {"classes": ["x"]}, {"statistics": [[9e9] * 3] * 2}):
        path.write_text(json.dumps({**sound, **change}))
        result = load(root)
        assert (result.mean, result.std, result.pixels) == (expected.mean, expected.std, 5)


def test_facts_come_back_as_they_were_written() -> None:
    facts = folder_cache.Facts(("a", "ü"), (7, 3), 1, 28, None)
    for case in (facts, facts.with_statistics((0.1 + 0.2,), (1 / 3,))):
        folder_cache.write("facts", case)
        assert folder_cache.read("facts") == case


def test_a_cache_that_cannot_be_written_costs_only_time(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load(root).mean == load(root).mean
    assert "cannot be written, so the next run reads the images again" in caplog.text


# Decoding


GRAY = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5)
COLOR = np.stack([GRAY, 255 - GRAY, GRAY // 2], axis=2)


def as_channels(values: np.ndarray, channels: int) -> np.ndarray:
    return np.stack([values] * channels)


def test_gray_images_of_every_kind_keep_their_values(tmp_path: Path) -> None:
    for channels in [1, 3]:
        deep = GRAY.astype(np.uint16) * 257  # 16 bits of the same brightness
        paths = [
            save(tmp_path / "8.png", GRAY),
            save(tmp_path / "alpha.png", GRAY, "LA"),
            save(tmp_path / "palette.gif", GRAY),
            save(tmp_path / "16.png", deep),
            save(tmp_path / "16.tif", deep),
            save(tmp_path / "key.png", GRAY, transparency=20),
        ]
        for path in paths:
            assert np.array_equal(read_image(path, channels, 5), as_channels(GRAY, channels)), path


def test_color_images_of_every_kind_keep_their_values(tmp_path: Path) -> None:
    alpha = np.dstack([COLOR, np.full((5, 5), 9, np.uint8)])
    transparent = Image.fromarray(COLOR).quantize(25)
    transparent.save(tmp_path / "transparent.png", transparency=bytes([3] * 25))
    paths = [
        save(tmp_path / "rgb.png", COLOR),
        save(tmp_path / "alpha.png", alpha),
        save(tmp_path / "palette.png", COLOR, "P"),
        save(tmp_path / "rgb.ppm", COLOR),
        save(tmp_path / "lossless.webp", COLOR, lossless=True),
    ]
    for path in paths:
        assert np.array_equal(read_image(path, 3, 5), opened(path, "RGBA")[..., :3].transpose(2, 0, 1)), path
    assert np.array_equal(read_image(tmp_path / "alpha.png", 3, 5), COLOR.transpose(2, 0, 1))
    found = read_image(tmp_path / "transparent.png", 3, 5).transpose(1, 2, 0)
    assert np.array_equal(found, np.asarray(transparent.convert("RGB")))


def test_odd_images_become_what_pillow_shows(tmp_path: Path) -> None:
    """Print colors, luminance and chrominance, 16 bits per channel, one pixel, several frames."""
    grown = np.kron(COLOR, np.ones((8, 8, 1), dtype=np.uint8))
    paths = [save(tmp_path / f"{mode}.{end}", grown, mode) for mode, end in (("CMYK", "jpg"), ("YCbCr", "jpg"))]
    for path in (*paths, save(tmp_path / "L.tif", grown, "LAB")):
        assert np.array_equal(read_image(path, 3, 40), opened(path, "RGB").transpose(2, 0, 1)), path
    frames = [Image.fromarray(values) for values in (GRAY, 255 - GRAY, GRAY // 2)]
    for end in ("gif", "webp", "tif"):
        path = tmp_path / f"frames.{end}"
        lossless = {"lossless": True} if end == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
        np.testing.assert_allclose(read_image(path, 1, 5)[0], GRAY, atol=1)  # the first one
    one = save(tmp_path / "one.png", np.full((1, 1, 3), 7, np.uint8))
    assert np.array_equal(read_image(one, 3, 4), np.full((3, 4, 4), 7))
    assert read_whole_image(one, 1).shape == (1, 1, 1)


def test_the_orientation_in_exif_is_ignored(tmp_path: Path) -> None:
    """As torchvision reads images, and so as published mean, std and accuracies are computed."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees
    path = save(tmp_path / "turned.png", COLOR[:, :3], exif=exif)
    assert np.array_equal(read_whole_image(path, 3), COLOR[:, :3].transpose(2, 0, 1))


def test_color_becomes_gray_by_luminance(tmp_path: Path) -> None:
    found = read_image(save(tmp_path / "rgb.png", COLOR), 1, 5)[0]
    np.testing.assert_allclose(found, COLOR @ [0.299, 0.587, 0.114], atol=1)


def test_black_and_white_is_the_full_range(tmp_path: Path) -> None:
    bits = np.eye(5, dtype=np.uint8) * 255
    assert np.array_equal(read_image(save(tmp_path / "bits.png", bits, "1"), 1, 5)[0], bits)


def test_values_without_a_range_are_refused(tmp_path: Path) -> None:
    for mode in ["I", "F"]:
        path = save(tmp_path / "deep.tif", GRAY, mode)
        with pytest.raises(
            OSError, match=rf"{path}: not a readable image \(mode {mode} has no fixed range; save it with"
        ):
            read_image(path, 1, 5)


def save_deep(path: Path, values: np.ndarray) -> Path:
    """Save values [H, W] or [H, W, 3] as a PNG of 16 bits per channel; Pillow writes none in color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = 0 if values.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(content))
    return path


def make_deep_folder(root: Path, largest: int, shape: tuple[int, ...] = (5, 5)) -> dict[int, np.ndarray]:
    """Make a folder of images of 16 bits, of which only the last one has the value ``largest``; return all values."""
    rng, values = np.random.default_rng(0), {}
    for index, place in enumerate(("train/a/0", "train/a/1", "train/b/2", "val/a/3", "val/b/4")):
        values[index] = rng.integers(0, largest // 4, shape).astype(np.uint16)
        values[index][0, 0] = largest if index == 4 else 0
        save_deep(root / f"{place}.png", values[index])
    return values


@pytest.mark.parametrize(("largest", "bits"), [(200, 8), (1023, 10), (1024, 12), (4095, 12), (16383, 14), (65535, 16)])
def test_the_range_of_16_bit_images_is_that_of_the_whole_set(tmp_path: Path, largest: int, bits: int) -> None:
    values = make_deep_folder(tmp_path / "images", largest)
    whole, part = load(tmp_path / "images"), load(tmp_path / "images", size=2, valid_size=1)
    again = load(tmp_path / "images")  # from the cache
    explicit = load(tmp_path / "images", channels=1, pixels=5, mean=[0.5], std=[0.2])
    for data in (whole, part, again, explicit):
        for half in (data.train, data.valid):
            names = [int(Path(name).stem) for name in half.images.listing.files]  # type: ignore[attr-defined]
            assert np.array_equal(everything(half).numpy()[:, 0], [values[name] >> (bits - 8) for name in names])
    assert whole.mean == again.mean


def test_colors_of_16_bits_need_the_full_range(tmp_path: Path) -> None:
    values = make_deep_folder(tmp_path / "full", 65535, (5, 5, 3))
    assert np.array_equal(everything(load(tmp_path / "full", valid_size=2).valid)[1], values[4].transpose(2, 0, 1) >> 8)
    make_deep_folder(tmp_path / "dark", 4095, (5, 5, 3))
    with pytest.raises(OSError, match=r"4\.png: not a readable image \(16 bits per color, of which 12 are used"):
        load(tmp_path / "dark")


def test_16_bits_under_another_name_are_refused_and_in_a_pgm_have_their_own_range(tmp_path: Path) -> None:
    make_deep_folder(tmp_path / "images", 4095)
    for path in (tmp_path / "images").rglob("*.png"):
        path.rename(path.with_suffix(".jpg"))
    with pytest.raises(OSError, match=r"16 bits per channel in a file without the suffix \.png or \.tif"):
        load(tmp_path / "images")
    (tmp_path / "deep.pgm").write_bytes(b"P5 5 5 1000\n" + (GRAY.astype(int) * 4).astype(">u2").tobytes())
    np.testing.assert_allclose(read_image(tmp_path / "deep.pgm", 1, 5)[0], GRAY * (4 * 65535 / 1000 / 256), atol=1)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 26)
    load(root)
    path = save(root / "train" / "cat" / "0.png", np.zeros((5, 6, 3), np.uint8))
    message = rf"{path}: not a readable image \((6x5 are more than 26 pixels|Image size \(30 pixels\))"
    for options in ({}, {"channels": 3, "pixels": 5}):
        with pytest.raises(OSError, match=message):
            load(root, **options)


def test_an_image_is_resized_by_its_shorter_side_and_cropped(tmp_path: Path) -> None:
    middle = np.full((8, 20, 3), 200, dtype=np.uint8)
    middle[:, :6], middle[:, 14:] = 0, 0  # the 8 columns in the middle remain
    for path in (save(tmp_path / "wide.png", middle), save(tmp_path / "high.png", middle.transpose(1, 0, 2))):
        assert np.array_equal(read_image(path, 3, 8), np.full((3, 8, 8), 200))
        assert read_image(path, 1, 4).shape == (1, 4, 4)
        assert read_image(path, 3, 30).shape == (3, 30, 30)
    checks = np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 254
    shrunk = read_image(save(tmp_path / "checks.png", checks), 1, 8)
    np.testing.assert_allclose(shrunk, 127, atol=1)  # antialiased


def test_channels_are_those_of_the_images(tmp_path: Path) -> None:
    for mode, channels in [("L", 1), ("LA", 1), ("1", 1), ("RGB", 3), ("P", 3), ("RGBA", 3)]:
        for index, path in enumerate(("train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png")):
            save(tmp_path / path, COLOR, mode if index == 1 else "L")  # one image with colors is enough
        data = load(tmp_path)
        assert data.channels == channels
        assert everything(data.train).shape == (2, channels, 5, 5)


# Errors


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "large", per_class=2, pixels=64)
    path = root / "train" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(OSError, match=rf"{path}: not a readable image \(.*\); repair or remove it"):
        load(root)
    data = load(root, mean=[0.5] * 3, std=[1] * 3)  # its head says how large it is
    with pytest.raises(OSError, match=f"{path}: not a readable image"):
        everything(data.train)


def test_files_that_are_no_images_are_named(root: Path) -> None:
    for content in [b"", b"GIF", b"<html>", b"\x89PNG\r\n\x1a\n" + bytes(30)]:
        for options in [{}, {"pixels": 5, "channels": 3}]:
            path = root / "train" / "cat" / "3.png"
            path.write_bytes(content)
            with pytest.raises(OSError, match=rf"{path}: not a readable image \(.+\); repair or remove it"):
                load(root, **options)
            assert path.read_bytes() == content


def test_an_empty_file_is_noticed_without_reading(root: Path) -> None:
    path = root / "val" / "dog" / "0.png"
    path.write_bytes(b"")
    with pytest.raises(OSError, match=rf"{path}: not a readable image \(the file is empty\)"):
        load(root, pixels=5, channels=3, mean=[0.5] * 3, std=[1.0] * 3)


def test_images_of_different_sizes_need_a_side(root: Path) -> None:
    for shape in [(6, 6, 3), (5, 6, 3)]:
        other = save(root / "val" / "dog" / "x.png", np.full(shape, 3, dtype=np.uint8))
        size = f"{shape[1]}x{shape[0]}"
        with pytest.raises(
            ValueError, match=rf"data.pixels: blank, but .* differ in size \(.*{other} is {size}\); set"
        ):
            load(root)
        assert everything(load(root, pixels=4).valid).shape == (10, 3, 4, 4)


def test_images_that_are_not_square_need_a_side(tmp_path: Path) -> None:
    for path in ("train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png"):
        save(tmp_path / path, np.zeros((4, 6), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"data.pixels: blank, but the images are not square \(.* is 6x4\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (".", "data.path={root}: no such folder; images are expected in its subfolders train/<class>/"),
        ("train", "data.path={root}: has no folder 'train'"),
        ("val", "data.path={root}: has neither a folder 'val' nor 'test'"),
        ("train/*", "{root}/train: has no class folders; images are expected in {root}/train/<class>/"),
        ("train/cat/*", r"{root}/train/cat: contains no images; their suffixes are .bmp .gif"),
        ("val/dog/*", r"{root}/val/dog: contains no images"),
    ],
)
def test_a_missing_folder_is_named(root: Path, missing: str, message: str) -> None:
    for path in root.glob(missing) if missing != "." else [root]:
        if path.is_dir():
            path.rename(root.with_name(f"moved {path.name}"))
        else:
            path.unlink()
    with pytest.raises(FileNotFoundError, match=message.format(root=root)):
        load(root)


def test_the_splits_need_the_same_classes(root: Path) -> None:
    (root / "val" / "dog").rename(root / "val" / "wolf")
    message = rf"{root}/val: its classes differ from those of {root}/train \(missing: dog; extra: wolf\)"
    with pytest.raises(ValueError, match=message):
        load(root)


def test_one_class_is_too_few(root: Path) -> None:
    for name in ("bee", "dog"):
        (root / "train" / name).rename(root / name)
    with pytest.raises(ValueError, match=rf"{root}/train: only one class \(cat\); at least two"):
        load(root)


def test_settings_that_contradict_the_folder_are_named(root: Path) -> None:
    for options, message in [
        ({"path": None}, "data.path: blank; imagefolder needs a folder"),
        ({"classes": 4}, "data.classes=4: .*train has classes=3; leave data.classes blank or set it to 3"),
        ({"channels": 4}, "data.channels=4: choose 1 .* 3 .* or blank"),
        ({"size": 19}, "data.size=19: the training set has 18 images"),
        ({"valid_size": 10}, "data.valid_size=10: the validation set has 9 images"),
        ({"mean": [0.5], "std": [0.5]}, "data.mean: 1 values, but the images have 3 channels"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_images("imagefolder", ImageRequest(**{"path": str(root), **options}))
