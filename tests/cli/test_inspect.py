"""``python -m fullbatch inspect``: the manifest, the classes, and the images that a model receives."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import ROOT
from PIL import Image

from fullbatch.build.data import Stream
from fullbatch.cli.inspect import main
from fullbatch.data.augmentation import Augmentation, augmentation_seed
from fullbatch.data.dataset import ImageRequest, load_images
from fullbatch.data.frozen import store
from fullbatch.data.frozen.build import Writing, stored_images
from fullbatch.data.frozen.copies import Recipe
from fullbatch.data.frozen.store import Environment
from fullbatch.runtime.lmdb import LMDBOptions

CROP = {"RandomCrop": [8, 2]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    recipe = Recipe("digits", load_images("digits", ImageRequest(size=100)).train, CROP, seed=3, rounds=3)
    stored_images(recipe, tmp_path / "db", LMDBOptions(), Writing())
    return tmp_path / "db"


def test_the_properties_of_a_database(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--verify"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in ('"digits"', '[["RandomCrop", [8, 2]]]', "[1, 8, 8]", "rounds 3", "0 10, 1 10, 2 10", "torchvision"):
        assert part in shown


def test_the_sheet_has_one_row_per_sample_and_one_column_per_round(folder: Path) -> None:
    path = folder.parent / "sheet.png"
    assert main([str(folder), "--sheet", str(path), "--rows", "12"]) == 0
    drawn = np.asarray(Image.open(path))
    assert drawn.shape == (12 * 66, 3 * 66)  # pixels of 8 x 8 and a gap of 2
    train = load_images("digits", ImageRequest(size=100)).train
    twelfth = int((train.labels == 1).nonzero()[1])  # the second sample of the second class
    expected = Augmentation(CROP, augmentation_seed(3))(
        train.images.fetch(torch.tensor([twelfth])), torch.tensor([twelfth]), 2
    )
    assert np.array_equal(drawn[11 * 66 + 2 :: 8, 2 * 66 + 2 :: 8], expected[0, 0].numpy())


def test_the_sheet_of_a_data_set_shows_the_images_of_a_run(tmp_path: Path) -> None:
    assert augmentation_seed(7) == Stream.AUGMENTATION.seed(7)
    path = tmp_path / "sheet.png"
    arguments = ["digits", "--augmentations", '{"RandomCrop": [8, 2]}', "--seed", "7", "--columns", "4"]
    assert main([*arguments, "--sheet", str(path), "--rows", "1"]) == 0
    drawn = np.asarray(Image.open(path))
    train = load_images("digits").train
    ids = (train.labels == 0).nonzero()[0]
    images = train.images.fetch(ids)
    augmented = Augmentation(CROP, augmentation_seed(7))(images, ids, 2)
    assert np.array_equal(drawn[2::8, 2:66:8], images[0, 0].numpy())
    assert np.array_equal(drawn[2::8, 3 * 66 + 2 :: 8], augmented[0, 0].numpy())


@pytest.mark.parametrize("whole", [False, True])
def test_whole_images_are_cropped_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, place in enumerate(("train/a", "train/b", "val/a", "val/b")):
        (tmp_path / "images" / place).mkdir(parents=True)
        values = np.random.default_rng(number).integers(0, 256, (90 + number, 70), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "images" / place / "0.png")
    path, crop = tmp_path / "sheet.png", {"RandomCrop": 64}
    arguments = ["imagefolder", "--path", str(tmp_path / "images"), "--pixels", "64", "--sheet", str(path)]
    arguments += ["--rows", "2", "--columns", "3", "--augmentations", json.dumps(crop), *["--whole"] * whole]
    assert main(arguments) == 0
    drawn = np.asarray(Image.open(path))[2:66, 2 * 66 + 2 : 3 * 66]
    request = ImageRequest(path=str(tmp_path / "images"), pixels=64, resize_on_read=not whole)
    data = load_images("imagefolder", request)
    one = (data.train.labels == 0).nonzero()[0]
    images: Any = data.train.images
    given = images.whole(int(one))[None] if whole else images.fetch(one)
    assert np.array_equal(drawn, Augmentation(crop, augmentation_seed(0))(given, one, 1)[0, 0].numpy())
    assert main([*arguments, "--augmentations", '{"RandomCrop": 60}']) == 2


def test_verification_detects_a_changed_record(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.close(folder)
    environment = Environment(folder, LMDBOptions(map_size=1 << 24))
    key, value = next(environment.records())
    with environment.lmdb.begin(write=True) as transaction:
        transaction.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=environment.table)
    environment.close()
    for arguments in ([str(folder)], [str(folder), "--verify"]):
        assert main(arguments) == 2
        assert "its images are not those that were written" in capsys.readouterr().err


@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for what, message in (("mnist", "data.name=mnist: unknown"), (str(tmp_path / "empty"), "no file data.mdb")):
        command = [sys.executable, "-m", "fullbatch", "inspect", what]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert ended.returncode == 2
        assert message in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
