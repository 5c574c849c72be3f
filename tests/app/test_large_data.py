"""Runs on images in files, of one size and of many, as users start them."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import settings_for
from PIL import Image
from running import SMALL, rows_of, run_in_process

from fullbatch.build.data import build_data, build_loader
from fullbatch.build.trainer import build_training

HYP = [*(argument for argument in SMALL if not argument.startswith(("data", "model"))), "model=linear"]
IMAGENET = ["data=ImageNet", "data.path=images", "data.classes=2", "data.size=24", "data.pixels=16"]
CROPS = [
    "data.augmentations_train={RandomResizedCrop: 16, RandomHorizontalFlip: 0.5}",
    "data.augmentations_val={Resize: 18, CenterCrop: 16}",
]
FOLDER = ["data=imagefolder", *IMAGENET[1:], "data.resize_on_read=False", "data.mean=[0.5,0.5,0.5]"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run in a folder with images of various sizes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3)):
        for name in "ab":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                values = rng.integers(0, 256, (20 + number, 40 - number, 3), dtype=np.uint8)
                Image.fromarray(values).save(tmp_path / "images" / split / name / f"{number}.JPEG")
    return lambda *arguments: run_in_process(monkeypatch, tmp_path, *HYP, "data.batch_size=10", *arguments)


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    (table,) = folder.glob(f"outputs/*/*/table_{name}_convergence_results.csv")
    return [{key: value for key, value in row.items() if not key.endswith("time")} for row in rows_of(table)]


def test_whole_images_train_and_two_sources_see_the_same(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("name=imagenet", *IMAGENET, *CROPS, "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]") == 0
    assert script("name=folder", *FOLDER, *CROPS, "data.std=[0.5,0.5,0.5]") == 0
    assert rows(tmp_path, "imagenet") == rows(tmp_path, "folder")
    assert len({row["train_loss"] for row in rows(tmp_path, "folder")}) == 4
    assert "24 training and 6 validation images of 3x16x16 in 2 classes" in capsys.readouterr().out


def test_frozen_crops_are_those_on_the_fly(script: Callable[..., int], tmp_path: Path) -> None:
    settings = [*FOLDER, "data.std=[0.5,0.5,0.5]", CROPS[1]]
    frozen = ["data/db=LMDB", "data.db.path=db", "data.db.rounds=4", "hyp.train_semi_stochastic=True", "data.db.seed=1"]
    of_the_base = CROPS[0].replace("data.", "data.db.")
    assert script("name=live", *settings, CROPS[0]) == 0
    assert script("name=frozen", *settings, *frozen, of_the_base, "data.augmentations_train=") == 0
    assert rows(tmp_path, "frozen") == rows(tmp_path, "live")


def test_a_crop_that_is_drawn_anew_is_not_one_function(script: Callable[..., int], tmp_path: Path) -> None:
    def constant(*overrides: str) -> bool:
        overrides = (*HYP, *FOLDER, "data.std=[0.5,0.5,0.5]", "data.augmentations_val=", *overrides)
        os.chdir(tmp_path)
        return build_training(settings_for(*overrides), seed=3).step.data.constant

    assert not constant("data.augmentations_train={RandomResizedCrop: 16}")
    assert constant("data.augmentations_train=")


def test_a_folder_resized_on_read_can_be_cached_and_whole_images_cannot(
    script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*IMAGENET, *CROPS, "data.caching=ram", "hyp.steps=1"]
    assert script(*settings) == 2
    assert "data.caching=ram: images of various sizes" in capsys.readouterr().err
    assert script(*settings, "data.resize_on_read=True") == 0


def test_a_reader_that_the_system_kills_ends_the_run_with_a_message(
    script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fullbatch.data.sources.folder_images import WholeFolderImages

    main, whole = os.getpid(), WholeFolderImages.whole

    def deadly(self: Any, index: int) -> Any:
        if index == 17 and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, index)

    monkeypatch.setattr(WholeFolderImages, "whole", deadly)
    assert script(*IMAGENET, *CROPS) == 2
    shown = capsys.readouterr()
    assert re.search(r"^a process that reads images has died: .*impl\.threads", shown.err, flags=re.MULTILINE)
    assert "Traceback" not in shown.err + shown.out


TRANSFORMS = [
    "{RandAugment: null}",
    "{RandAugment: {num_ops: 3, magnitude: 5}}",
    "{AutoAugment: cifar10}",
    "{AugMix: {severity: 2}}",
    "{TrivialAugmentWide: null}",
    "{RandomErasing: {p: 0.9, scale: [0.1, 0.3]}}",
    "{ColorJitter: [0.4, 0.4, 0.4, 0.1]}",
    "{GaussianBlur: {kernel_size: 3, sigma: [0.5, 5]}}",
    "{RandomAffine: {degrees: 10, translate: [0.1, 0.1], scale: [0.9, 1.1]}}",
    "{RandomResizedCrop: {size: 16, scale: [0.5, 1.0]}}",
    "{RandomRotation: 15}",
    "{RandomPerspective: 0.3, RandomGrayscale: 0.2, RandomCrop: [16, 2]}",
]


@pytest.mark.parametrize("transforms", TRANSFORMS)
@pytest.mark.parametrize("resized", ["True", "False"])
def test_any_transform_is_typed_by_name_and_repeats_itself(
    script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, transforms: str, resized: str
) -> None:
    """Whatever the block size, the order and the caching, and with whole images, too, where a crop is among them."""
    monkeypatch.chdir(tmp_path)
    if resized == "False" and "Crop" not in transforms:
        transforms = transforms[:-1] + ", RandomCrop: 16}"

    def samples(size: int, caching: str, shuffle: bool = False) -> torch.Tensor:
        options = [*HYP, *FOLDER[:-2], "data.mean=[0,0,0]", "data.std=[1,1,1]", f"data.batch_size={size}"]
        options += [
            f"data.augmentations_train={transforms}",
            f"data.caching={caching}",
            f"data.resize_on_read={resized}",
        ]
        run = settings_for(*options)
        data = build_data(run, seed=3)
        blocks = build_loader(run, data, data.train, 3, torch.device("cpu")).blocks(1, shuffle=shuffle)
        inputs = torch.cat([block.inputs for block in blocks])
        return inputs[torch.argsort(torch.cat([ids for _, ids in blocks.numbered_ids]))]

    first = samples(10, "False")
    assert first.shape == (24, 3, 16, 16)
    assert len(first.unique(dim=0)) >= 20  # strong ones make an image black now and then
    assert torch.equal(samples(24, "False", shuffle=True), first)
    if resized == "True":
        assert torch.equal(samples(7, "ram"), first)
        assert not torch.equal(samples(7, "ram"), plain_images())


def plain_images() -> torch.Tensor:
    run = settings_for(*HYP, *FOLDER[:-2], "data.mean=[0,0,0]", "data.std=[1,1,1]", "data.augmentations_train=")
    data = build_data(run, seed=3)
    return data.train.images.fetch(torch.arange(24)) / 255
