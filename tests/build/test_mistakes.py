"""Settings that contradict the data, the model or the files: one line that names the key and what is accepted."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from composing import settings_for
from PIL import Image
from running import SMALL

from fullbatch.build.probes import build_probes
from fullbatch.build.trainer import build_training
from fullbatch.runtime.files import format_error
from fullbatch.settings import Run

FOLDER = "data=imagefolder data.path=images data.size= data.valid_size="
LMDB = "data/db=LMDB data.db.path=db"
ONE_PIXEL = "model=resnet18 model.width=4"  # at its end
PADDED = "data.db.pixels=8 data.db.augmentations_train={Pad:1}"
CROP = "data.augmentations_train={RandomResizedCrop:8}"
CACHED = r"^data\.caching=ram: images of various sizes .*data\.resize_on_read=True"
HERE, TINY = "data.path=here data.download=False data.size= data.valid_size=", "here/tiny-imagenet-200.zip"

MISTAKES = [
    # names
    ("hyp.scheduler=sawtooth", r"^hyp\.scheduler: unknown scheduler 'sawtooth'; known: cosine-decay"),
    ("hyp.loss_modification=hinge", r"^hyp\.loss_modification: unknown .*'hinge'; known: incorrect"),
    ("hyp.grad_reg.implementation=complex-step", r"^hyp\.grad_reg: .*not holomorphic.*forward-over"),
    ("hyp.grad_reg.implementation=exact", r"^hyp\.grad_reg: .*exact is unknown; known: forward-diff"),
    ("model.depth=19", r"^model: depth=19: unknown; known: 18, 20"),
    ("model.normalization=Batch", r"^model: normalization=Batch: unknown; known: BatchNorm2d"),
    ("model.nonlin_fn=Rectifier", r"^model: nonlin_fn=Rectifier: unknown; known: ReLU"),
    ("data.name=mnist", r"^data\.name=mnist: unknown; known: CIFAR10"),
    ("impl.device=tpu", r"^impl\.device: should be auto, cpu"),
    ("data.augmentations_train={RandomCorp:8}", r"^data\.augmentations_train\.RandomCorp: .*RandomCrop"),
    ("data.augmentations_train={RandomCrop:soft}", r"^data\.augmentations_train\.RandomCrop: wrong"),
    ("data.augmentations_train={RandomCrop:20}", r"^data\.augmentations_train\.RandomCrop: .*8x8"),
    ("data.augmentations_val={Grayscale:3}", r"^model: fails on images \[1, 3, 8, 8\]"),
    # sizes
    ("data.size=5000", r"^data\.size=5000: the training set has 1437 images"),
    ("data.valid_size=361", r"^data\.valid_size=361: the validation set has 360 images"),
    ("data.channels=3", r"^data\.channels=3: digits has channels=1"),
    ("data.mean=[0.5,0.5] data.std=[1,1]", r"^data\.mean: 2 values, but .* 1 channels"),
    ("data.batch_size=100 data.drop_last=True", r"^data\.drop_last=True: 60 samples do not"),
    (
        f"{ONE_PIXEL} data.size=41 data.batch_size=20",
        r"^data\.size=41, data\.batch_size=20, hyp\.sub_batch=128: .*of size 1 .*drop_",
    ),
    (
        f"{ONE_PIXEL} data.size=41 data.batch_size=20 dryrun=True",
        r"^data\.size=41, .* a sub-batch of size 1 is too small for batch",
    ),
    # analysis
    ("analysis.sample_gradient_norms=train", r"^analysis\.sample_gradient_norms: .*\(BatchNorm2d\) mixes"),
    ("analysis.compute_gradient_SNR=True data.batch_size=60", r"^analysis\.internal_batch.*one sub-batch"),
    (
        "analysis=edge_of_stability analysis.sharpness.top_k=1000000",
        r"^analysis\.sharpness\.top_k=1000000: the model has \d+ parameters",
    ),
    (
        "analysis=edge_of_stability model.nonlin_fn=Hardsigmoid",
        r"^analysis\.sharpness\.matrix: hardsigmoid_backward has no second derivative.*central-differences",
    ),
    (
        "analysis.compute_gradient_curvature=True model.nonlin_fn=Hardsigmoid",
        r"^analysis\.compute_gradient_curvature: hardsigmoid_backward has no second derivative",
    ),
    (
        "hyp.grad_reg.implementation=autograd model.nonlin_fn=Hardsigmoid",
        r"^hyp\.grad_reg\.implementation: hardsigmoid_backward has no second derivative.*central-differences",
    ),
    # files that are not there
    (FOLDER, r"^data\.path=.*images: no such folder; .*train/<class>/"),
    (f"data=TinyImageNet {HERE}", r"^data\.path=here: TinyImageNet is missing .*into here and"),
    (f"data=ImageNet {HERE}", r"^data\.path=here: ImageNet is missing.*img_train\.tar.*image-net\.org"),
    ("data=CIFAR10 data.path=no data.download=False data.size= data.valid_size=", r"into no and"),
    # databases
    (f"{LMDB} data.db.mean=[0,0]", r"^data\.db\.mean: 2 values, but .*images of 1 channels"),
    (f"{LMDB} {PADDED}", r"^data\.db\.pixels=8: data\.db\.augmentations_train makes images of 10x10"),
    (f"{LMDB} data.db.augmentations_train={{Flop:1}}", r"^data\.db\.augmentations_train\.Flop: not a torch"),
]


@pytest.fixture(autouse=True)
def _launched_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    monkeypatch.chdir(tmp_path)


def settings(overrides: str) -> Run:
    return settings_for(*SMALL, *overrides.split())


def assert_refused(overrides: str, message: str) -> None:
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    with pytest.raises((ValueError, OSError)) as refused:
        build_probes(build_training(settings(overrides), 1), None)
    error = refused.value
    shown = format_error(error) if isinstance(error, OSError) else str(error)
    assert re.search(message, shown)
    assert "\n" not in shown
    assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize(("overrides", "message"), MISTAKES)
def test_a_mistake_is_named(overrides: str, message: str) -> None:
    assert_refused(overrides, message)


def images(classes: str = "ab") -> Path:
    rng = np.random.default_rng(0)
    for folder in (Path("images", split, name) for split in ("train", "val") for name in classes):
        folder.mkdir(parents=True)
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{number}.png")
    return Path("images")


def folders(*names: str) -> None:
    for name in names:
        Path(name).mkdir(parents=True)


def class_of_one_split() -> None:
    (images() / "val" / "b").rename("images/val/c")


def with_file(name: str, content: bytes) -> Callable[[], object]:
    """Return what writes images of two classes, and one file among them with this content."""
    return lambda: (images() / name).write_bytes(content)


def with_image(name: str, mode: str, size: tuple[int, int] = (8, 8)) -> Callable[[], object]:
    return lambda: Image.new(mode, size).save(images() / name)


def with_archive() -> None:
    folders("here")
    Path(TINY).touch()


@pytest.mark.parametrize(
    ("prepare", "overrides", "message"),
    [
        (lambda: folders("images"), FOLDER, r"^data\.path=.*images: has no folder 'train'"),
        (lambda: folders("images/train", "images/val"), FOLDER, r"train: has no class folders"),
        (lambda: folders("images/train/a", "images/val/a"), FOLDER, r"train/a: contains no images"),
        (lambda: images("a"), FOLDER, r"train: only one class \(a\)"),
        (with_file("train/a/x.png", b""), FOLDER, r"a/x\.png: not a readable image \(the file is empty"),
        (with_file("train/a/0.png", b"\x89PNG\r\n\x1a\n"), FOLDER, r"train/a/0\.png: not a readable image"),
        (with_file("val/a/x.jpg", b"a letter"), FOLDER, r"val/a/x\.jpg: not a readable image"),
        (with_image("val/b/9.png", "L", (9, 8)), FOLDER, r"^data\.pixels: blank, but .* differ in size"),
        (with_image("train/b/9.tif", "F"), f"{FOLDER} data.pixels=8", r"9\.tif: .*no fixed range"),
        (images, f"{FOLDER} data.channels=2", r"^data\.channels=2: choose 1 \(gray\), 3"),
        (images, f"{FOLDER} data.size=9", r"^data\.size=9: the training set has 8 images"),
        (class_of_one_split, FOLDER, r"val: its classes differ from those of .*missing: b; extra: c"),
        (images, f"{FOLDER} data.caching=ram data.resize_on_read=False data.pixels=8 {CROP}", CACHED),
        (with_archive, f"data=TinyImageNet {HERE}", r"here/tiny-imagenet-200\.zip \(md5 "),
        (lambda: folders("here/tiny-imagenet-200"), f"data=TinyImageNet {HERE}", r"wnids\.txt: the file is missing"),
    ],
)
def test_files_that_cannot_be_used_are_named(prepare: Callable[[], object], overrides: str, message: str) -> None:
    prepare()
    assert_refused(overrides, message)


def test_odd_images_are_converted() -> None:
    folder = images()
    for mode in ("RGB", "L", "RGBA", "P", "1", "LA", "I;16"):
        Image.new(mode, (8, 8)).save(folder / "train" / "b" / f"mode {mode}.png")
    data = build_training(settings(FOLDER), 1).problem.data
    assert len(data.train.labels) == 15
