"""Images of various sizes: what is read of them is a function of (seed, step, sample), whoever reads it."""

import multiprocessing
import os
import signal
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from block_loading import block_loader
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from fullbatch.data.augmentation import _STREAM, Augmentation, augmentation_seed
from fullbatch.data.dataset import ImageData, ImageRequest, ImageSet, load_images
from fullbatch.data.frozen.build import Writing, stored_images
from fullbatch.data.frozen.copies import Recipe
from fullbatch.data.images import TensorImages, WholeImages
from fullbatch.data.loader import BlockLoader
from fullbatch.data.reading import translate_worker_errors
from fullbatch.randomness import derive_seed
from fullbatch.runtime.lmdb import LMDBOptions

TRANSFORMS = {"RandomResizedCrop": 6, "RandomHorizontalFlip": 0.5, "RandomRotation": 20}
CHAINS: dict[str, dict[str, Any]] = {
    "crop": {"RandomCrop": [6, 2]},
    "resized crop, then others": TRANSFORMS,
    "others, then a crop": {"ColorJitter": 0.4, "RandomHorizontalFlip": 0.5, "Resize": 9, "RandomCrop": 6},
    "resized": {"Resize": [[6, 6]], "RandomVerticalFlip": 0.5},
    "validation": {"Resize": 8, "CenterCrop": 6},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """26 + 4 images, no two sides alike, some of them gray."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 13), ("val", 2)):
        for name in "ab":
            for index in range(count):
                shape = (7 + index, 25 - index) if name == "a" else (30 - index, 8 + index)
                values = rng.integers(0, 256, shape if index == 3 else (*shape, 3), dtype=np.uint8)
                path = tmp_path / "images" / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
    return tmp_path / "images"


def load(root: Path, **options: Any) -> ImageData:
    settings = {"pixels": 6, "channels": 3, "mean": [0.0] * 3, "std": [1.0] * 3, "resize_on_read": False}
    return load_images("imagefolder", ImageRequest(str(root), **{**settings, **options}))


def loader(part: ImageSet, transforms: dict[str, Any] | None = None, **options: Any) -> BlockLoader:
    augmentation = Augmentation(TRANSFORMS if transforms is None else transforms, 3)
    return block_loader(part, **{"batch_size": 8, "seed": 4, "augmentation": augmentation, **options})


def bytes_of(some_loader: BlockLoader, step: int = 2, **options: bool) -> Tensor:
    blocks = some_loader.blocks(step, **options)
    return (torch.cat([block.inputs for block in blocks]) * 255).round().to(torch.uint8)


def image_of(part: ImageSet, index: int) -> Tensor:
    """The file, as anybody would open it."""
    images: Any = part.images
    with Image.open(images.listing.path(index)) as opened:
        return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)


def test_the_crop_is_torchvision_s_of_the_whole_image(root: Path) -> None:
    part, step = load(root).train, 2
    found = bytes_of(loader(part, {"RandomResizedCrop": 6}), step)
    for index in range(len(part)):
        torch.manual_seed(derive_seed(3, _STREAM, step, 0, 0, index))
        assert torch.equal(found[index], v2.RandomResizedCrop(6)(image_of(part, index)))


@pytest.mark.parametrize("transforms", CHAINS.values(), ids=CHAINS)
def test_every_sample_is_augmented_as_it_would_be_alone(root: Path, transforms: dict[str, Any]) -> None:
    part, augmentation = load(root).train, Augmentation(transforms, 3)
    ids = torch.arange(len(part)).split(1)
    expected = torch.cat([augmentation(image_of(part, int(one))[None], one, 2) for one in ids])
    assert expected.shape == (26, 3, 6, 6)
    assert torch.equal(bytes_of(loader(part, transforms)), expected)
    shuffled = loader(part, transforms, num_workers=2)
    order = torch.cat([ids for _, ids in shuffled.blocks(2, shuffle=True).numbered_ids])
    assert torch.equal(bytes_of(shuffled, shuffle=True), expected[order])


def test_it_does_not_depend_on_workers_or_blocks(root: Path) -> None:
    part = load(root).train
    results = [
        bytes_of(loader(part, num_workers=workers, batch_size=size, persistent_workers=True, caching=caching))
        for workers, size, caching in ((0, 8, None), (1, 5, None), (2, 26, False), (2, 1, False))
    ]
    assert all(torch.equal(result, results[0]) for result in results[1:])
    assert not torch.equal(bytes_of(loader(part), step=3), results[0])


def test_copies_have_draws_of_their_own(root: Path) -> None:
    part = load(root).train
    copies, alone = bytes_of(loader(part, copies=3, num_workers=2)), bytes_of(loader(part))
    assert torch.equal(copies[::3], alone)
    augmentation = Augmentation(TRANSFORMS, 3)
    for copy in (1, 2):
        expected = augmentation(image_of(part, 7)[None], torch.tensor([7]), 2, copy)
        assert torch.equal(copies[3 * 7 + copy], expected[0])
    only_a_crop = loader(part, {"RandomResizedCrop": 6}, copies=2)
    assert len(bytes_of(only_a_crop).unique(dim=0)) == 52


def test_without_a_transform_that_fixes_the_size_images_are_resized_on_read(root: Path) -> None:
    for transforms in [{}, {"RandomHorizontalFlip": 0.5}, {"Resize": 6}]:
        whole, resized = load(root).train, load(root, resize_on_read=True).train
        assert isinstance(whole.images, WholeImages)
        assert not isinstance(resized.images, WholeImages)
        assert torch.equal(bytes_of(loader(whole, transforms)), bytes_of(loader(resized, transforms)))


def test_folders_resize_on_read_by_default(root: Path) -> None:
    default, resized, whole = (
        load_images("imagefolder", ImageRequest(str(root), pixels=6, resize_on_read=choice))
        for choice in (None, True, False)
    )
    everything = torch.arange(26)
    assert torch.equal(default.train.images.fetch(everything), resized.train.images.fetch(everything))
    assert default.train.checksum() == resized.train.checksum() != whole.train.checksum()
    assert whole.mean == default.mean


def test_frozen_copies_are_those_on_the_fly(root: Path, tmp_path: Path) -> None:
    part, seed, rounds = load(root).train, 5, 3
    recipe = Recipe("x", part, TRANSFORMS, seed, rounds)
    assert recipe.manifest()["shape"] == [3, 6, 6]
    built = [
        stored_images(recipe, tmp_path / str(workers), LMDBOptions(), Writing(workers, write_frequency=10))
        for workers in (0, 2)
    ]
    assert built[0].checksum() == built[1].checksum()
    live = loader(part, augmentation=Augmentation(TRANSFORMS, augmentation_seed(seed)))
    for step in range(rounds):
        assert torch.equal(built[0].fetch(torch.arange(26) + 26 * step), bytes_of(live, step))
    clean = Recipe("x", part, TRANSFORMS, seed, rounds, first_round_clean=True)
    assert torch.equal(clean.copies(torch.arange(26), 0), part.images.fetch(torch.arange(26)))


# What is refused


@pytest.mark.parametrize("caching", ["device", "ram", True])
def test_they_cannot_be_cached(root: Path, caching: object) -> None:
    with pytest.raises(ValueError, match=rf"data\.caching={caching}: .*data\.resize_on_read=True"):
        loader(load(root).train, caching=caching)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_image_that_does_not_fit_is_named(root: Path, workers: int) -> None:
    some_loader = loader(load(root).train, {"RandomCrop": 9}, num_workers=workers)
    with pytest.raises(ValueError, match=r"RandomCrop: images of [78]x2\d .*9x9 \(.*train/a/[01]\.png\)$"):
        bytes_of(some_loader)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(root: Path, workers: int) -> None:
    path = root / "train" / "b" / "5.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OSError, match=f"^{path}: not a readable image") as raised:
        bytes_of(loader(load(root).train, num_workers=workers))
    assert "Traceback" not in str(raised.value)


class Deadly(TensorImages):
    """Images whose reader is killed, as the system does where the memory is full."""

    def fetch(self, ids: Tensor) -> Tensor:
        if 20 in ids.tolist():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fetch(ids)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_killed_worker_is_an_error_and_does_not_hang(persistent: bool) -> None:
    part = ImageSet(Deadly(torch.zeros(30, 1, 2, 2, dtype=torch.uint8)), torch.zeros(30, dtype=torch.int64), ("a",))
    reading = loader(part, {}, caching=False, num_workers=2, persistent_workers=persistent)
    with pytest.raises(OSError, match=r"a process that reads images has died: .*memory was full.*impl\.threads"):
        bytes_of(reading)


def test_frames_that_a_death_interrupts_are_cleared() -> None:
    class Held:
        pass

    kept = []

    def interrupted() -> None:
        held = Held()
        kept.append(weakref.ref(held))
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    with pytest.raises(OSError, match="has died") as raised, translate_worker_errors():
        interrupted()
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert kept[0]() is None


def test_a_killed_builder_of_copies_is_an_error(tmp_path: Path) -> None:
    part = ImageSet(Deadly(torch.zeros(30, 1, 2, 2, dtype=torch.uint8)), torch.zeros(30, dtype=torch.int64), ("a",))
    recipe = Recipe("x", part, {}, 0)
    with pytest.raises(OSError, match="a process that reads images has died"):
        stored_images(recipe, tmp_path / "db", LMDBOptions(), Writing(num_workers=1))


def test_an_error_of_a_reader_ends_its_workers() -> None:
    """At once: the garbage collector would wait for them, five seconds each."""

    class Damaged(TensorImages):
        def fetch(self, ids: Tensor) -> Tensor:
            if 20 in ids.tolist():
                raise OSError("damaged")
            return super().fetch(ids)

    part = ImageSet(Damaged(torch.zeros(30, 1, 2, 2, dtype=torch.uint8)), torch.zeros(30, dtype=torch.int64), ("a",))
    with pytest.raises(OSError, match="damaged") as raised:  # its traceback is kept
        bytes_of(loader(part, {}, caching=False, num_workers=2))
    assert raised.value.__traceback__ is not None
    assert not multiprocessing.active_children()
