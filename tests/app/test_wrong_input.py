"""Wrong input, typed as users type it: an exit status, one message that says what was wrong, and nothing damaged."""

import ctypes
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import SCRIPT, SMALL, run_in_process

from fullbatch.training.checkpoint import load_checkpoint, save_checkpoint

NAMED = "impl.checkpoint.name=mine"
FOLDER = "data=imagefolder data.path=images data.size= data.valid_size="
LMDB = "data/db=LMDB data.db.path=db"
PADDED = "data.db.pixels=8 data.db.augmentations_train={Pad:1}"
CROP = "data.augmentations_train={RandomResizedCrop:8}"
CACHED = r"^data\.caching=ram: the transforms choose anew .*data\.resize_on_read=True"
HERE, TINY = "data.path=here data.download=False data.size= data.valid_size=", "here/tiny-imagenet-200.zip"
HYDRA, MISTAKE = 1, 2  # who refuses


class Evil:
    """Unpickling this writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harmed"),)


def images(folder: Path, classes: str = "ab") -> Path:
    rng = np.random.default_rng(0)
    for place in (folder / "images" / split / name for split in ("train", "val") for name in classes):
        place.mkdir(parents=True)
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(place / f"{number}.png")
    return folder / "images"


def odd_class(folder: Path) -> None:
    """Images of a class that is in one split alone."""
    (images(folder) / "val" / "b").rename(folder / "images" / "val" / "c")


def with_file(name: str, content: bytes) -> Callable[[Path], None]:
    """Images of two classes, and one file among them with this content."""
    return lambda folder: (images(folder) / name).write_bytes(content) and None


def with_image(name: str, mode: str, size: tuple[int, int] = (8, 8)) -> Callable[[Path], None]:
    return lambda folder: Image.new(mode, size).save(images(folder) / name)


def checkpoint(folder: Path) -> Path:
    (folder / "checkpoints").mkdir()
    return folder / "checkpoints" / "mine.pth"


def with_checkpoint(content: object) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        path = checkpoint(folder)
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)

    return prepare


def with_database(content: bytes) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / "db" / "digits_train_60x1").mkdir(parents=True)
        (folder / "db" / "digits_train_60x1" / "data.mdb").write_bytes(content)

    return prepare


def make(*names: str) -> Callable[[Path], None]:
    """Folders, and files where a name does not end in a slash."""

    def prepare(folder: Path) -> None:
        for name in names:
            (folder / name).mkdir(parents=True) if name.endswith("/") else (folder / name).touch()

    return prepare


@dataclass(frozen=True)
class Case:
    typed: str
    status: int
    message: str
    prepare: Callable[[Path], object] = field(default=lambda folder: None)


CASES = [
    # keys and groups
    Case("hyp.stepz=3", HYDRA, r"Key 'stepz' is not in struct"),
    Case("hyp.steps", HYDRA, r"Error parsing override 'hyp.steps'"),
    Case("+=3", HYDRA, r"Error parsing override '\+=3': there is no key"),
    Case("~hyp.steps", MISTAKE, r"^hyp\.steps: this key is missing"),
    Case("+hyp.optim.nestrov=True", MISTAKE, r"^hyp\.optim\.nestrov: there is no such key"),
    Case("data=digitz", HYDRA, r"Could not find 'data/digitz'(.|\n)*digits"),
    Case("model=resnet19", HYDRA, r"Could not find 'model/resnet19'(.|\n)*resnet18"),
    Case("hyp/optim=madam", HYDRA, r"Could not find 'hyp/optim/madam'(.|\n)*adam"),
    Case("hyp.optim=adam", MISTAKE, r"^hyp\.optim=adam: .*chosen with a slash: hyp/optim=adam"),
    Case("hyp.optim_modification=SAM", MISTAKE, r"chosen with a slash: hyp/optim_modification=SAM"),
    Case("data.db=LMDB", MISTAKE, r"chosen with a slash: data/db=LMDB"),
    Case("impl.setup=distributed", MISTAKE, r"chosen with a slash: impl/setup=distributed"),
    Case("hyp=none", HYDRA, r"Could not find 'hyp/none'"),
    # types
    Case("hyp.steps=many", MISTAKE, r"^hyp\.steps: .*valid integer.*'many'"),
    Case("hyp.steps=[1,2]", MISTAKE, r"^hyp\.steps: .*valid integer"),
    Case("hyp.steps=", MISTAKE, r"^hyp\.steps: .*got a blank"),
    Case("data.batch_size=1.5", MISTAKE, r"^data\.batch_size: .*integer"),
    Case("hyp.shuffle=perhaps", MISTAKE, r"^hyp\.shuffle: .*valid boolean"),
    Case("seed=abc", MISTAKE, r"^seed: .*valid integer"),
    Case("data.augmentations_train=RandomCrop", MISTAKE, r"^data\.augmentations_train: .*dictionary"),
    # names
    Case("hyp.scheduler=sawtooth", MISTAKE, r"^hyp\.scheduler: unknown scheduler 'sawtooth'; known: cosine-decay"),
    Case("hyp.loss_modification=hinge", MISTAKE, r"^hyp\.loss_modification: unknown .*'hinge'; known: incorrect"),
    Case("hyp.grad_reg.implementation=complex-step", MISTAKE, r"^hyp\.grad_reg: .*not holomorphic.*forward-over"),
    Case("hyp.grad_reg.implementation=exact", MISTAKE, r"^hyp\.grad_reg: .*exact is unknown; known: forward-diff"),
    Case("model.depth=19", MISTAKE, r"^model: depth=19: unknown; known: 18, 20"),
    Case("model.normalization=Batch", MISTAKE, r"^model: normalization=Batch: unknown; known: BatchNorm2d"),
    Case("model.nonlin_fn=Rectifier", MISTAKE, r"^model: nonlin_fn=Rectifier: unknown; known: ReLU"),
    Case("data.name=mnist", MISTAKE, r"^data\.name=mnist: unknown; known are CIFAR10"),
    Case("impl.device=tpu", MISTAKE, r"^impl: device=tpu: cannot be used"),
    Case("impl.JIT=script", MISTAKE, r"^impl\.JIT: TorchScript is refused"),
    Case("name=a/b", MISTAKE, r"^name: should be part of a file's name"),
    Case("impl.checkpoint.name=../mine", MISTAKE, r"^impl\.checkpoint\.name: should be .* below checkpoints/"),
    Case("base_dir=${nowhere}", HYDRA, r"Interpolation key 'nowhere' not found"),
    Case("data.augmentations_train={RandomCorp: 8}", MISTAKE, r"^data\.augmentations_train\.RandomCorp: .*RandomCrop"),
    Case("data.augmentations_train={RandomCrop: soft}", MISTAKE, r"^data\.augmentations_train\.RandomCrop: wrong"),
    Case("data.augmentations_train={RandomCrop: 20}", MISTAKE, r"^data\.augmentations_train\.RandomCrop: .*8x8"),
    Case("data.augmentations_val={Grayscale: 3}", MISTAKE, r"^model: does not take images of 3x8x8"),
    # ranges, and what contradicts itself
    Case("hyp.steps=0", MISTAKE, r"^hyp\.steps: .*greater than or equal to 1 \(got 0\)"),
    Case("data.batch_size=0", MISTAKE, r"^data\.batch_size: .*greater than or equal to 1"),
    Case("impl.logger={}", MISTAKE, r"^impl\.logger"),
    Case("model.width=0", MISTAKE, r"^model\.width: .*greater than or equal to 1"),
    Case("hyp.optim.lr=-1", MISTAKE, r"^hyp\.optim\.lr: .*greater than or equal to 0"),
    Case("hyp.optim.lr=nan", MISTAKE, r"^hyp\.optim\.lr: .*finite"),
    Case("hyp.label_smoothing=1", MISTAKE, r"^hyp\.label_smoothing: .*less than 1"),
    Case("seed=-1", MISTAKE, r"^seed: .*greater than or equal to 0"),
    Case(f"seed={2**63}", MISTAKE, r"^seed: should be below 2\^63"),
    Case("data.size=5000", MISTAKE, r"^data\.size=5000: the training set has 1437 images"),
    Case("data.valid_size=361", MISTAKE, r"^data\.valid_size=361: the validation set has 360 images"),
    Case("data.channels=3", MISTAKE, r"^data\.channels=3: digits has channels=1"),
    Case("data.mean=[0.5,0.5] data.std=[1,1]", MISTAKE, r"^data\.mean: 2 values, but .* 1 channels"),
    Case("data.batch_size=100 data.drop_last=True", MISTAKE, r"^data\.drop_last=True: leaves nothing"),
    Case("hyp.optim.dampening=0.5", MISTAKE, r"^hyp\.optim\.nesterov=True: needs hyp\.optim\.dampening=0"),
    Case("hyp/optim=lbfgs hyp/optim_modification=SAM", MISTAKE, r"^hyp/optim_modification=SAM: not with"),
    Case("hyp.blocks_per_update=2", MISTAKE, r"^hyp\.blocks_per_update=2: only in stochastic mode"),
    # analysis
    Case("analysis=everything", HYDRA, r"Could not find 'analysis/everything'(.|\n)*edge_of_stability"),
    Case(
        "analysis.compute_flatness=True analysis.flatness_norm=block", MISTAKE, r"^analysis\.flatness_norm: .*'filter'"
    ),
    Case("analysis.flatness_step_size=0", MISTAKE, r"^analysis\.flatness_step_size: .*greater than 0"),
    Case("analysis.check_every_nth_step=0", MISTAKE, r"^analysis\.check_every_nth_step: .*greater than or equal to 1"),
    Case("analysis.internal_batch_size_chunks=0", MISTAKE, r"^analysis\.internal_batch_size_chunks: .*greater than or"),
    Case("analysis.sample_gradient_norms=both", MISTAKE, r"^analysis\.sample_gradient_norms: .*'train' or 'eval'"),
    Case("analysis.sample_gradient_norms=train", MISTAKE, r"^analysis\.sample_gradient_norms: .*\(BatchNorm2d\) mixes"),
    Case("analysis.compute_gradient_SNR=True data.batch_size=60", MISTAKE, r"^analysis\.internal_batch.*one sub-batch"),
    Case("analysis.sharpness.top_k=0", MISTAKE, r"^analysis\.sharpness\.top_k: .*greater than or equal to 1"),
    Case(
        "analysis=edge_of_stability analysis.sharpness.top_k=1000000",
        MISTAKE,
        r"^analysis\.sharpness\.top_k=1000000: the model has \d+ parameters",
    ),
    Case("analysis.sharpness.tolerance=0", MISTAKE, r"^analysis\.sharpness\.tolerance: .*greater than 0"),
    Case("analysis.sharpness.matrix=fisher", MISTAKE, r"^analysis\.sharpness\.matrix: .*'hessian' or 'gauss-newton'"),
    Case("analysis.sharpness.trace_matvecs=3", MISTAKE, r"^analysis\.sharpness\.trace_matvecs: .*0, or greater than"),
    # images
    Case(FOLDER, MISTAKE, r"^data\.path=.*images: no such folder; .*train/<class>/"),
    Case(FOLDER, MISTAKE, r"^data\.path=.*images: holds no folder 'train'", make("images/")),
    Case(FOLDER, MISTAKE, r"train: holds no class folders", make("images/train/", "images/val/")),
    Case(FOLDER, MISTAKE, r"train/a: holds no images", make("images/train/a/", "images/val/a/")),
    Case(FOLDER, MISTAKE, r"train: only one class \(a\)", lambda folder: images(folder, "a")),
    Case(FOLDER, MISTAKE, r"a/x\.png: not a readable image \(the file is empty", with_file("train/a/x.png", b"")),
    Case(FOLDER, MISTAKE, r"train/a/0\.png: not a readable image", with_file("train/a/0.png", b"\x89PNG\r\n\x1a\n")),
    Case(FOLDER, MISTAKE, r"val/a/x\.jpg: not a readable image", with_file("val/a/x.jpg", b"a letter")),
    Case(FOLDER, MISTAKE, r"^data\.pixels: blank, but .* differ in size", with_image("val/b/9.png", "L", (9, 8))),
    Case(FOLDER + " data.pixels=8", MISTAKE, r"9\.tif: .*no fixed range", with_image("train/b/9.tif", "F")),
    Case(FOLDER + " data.channels=2", MISTAKE, r"^data\.channels=2: give 1 \(grey\), 3", images),
    Case(FOLDER + " data.size=9", MISTAKE, r"^data\.size=9: the training set has 8 images", images),
    Case(FOLDER, MISTAKE, r"val: its classes are not those of .*missing: b; extra: c", odd_class),
    Case(f"{FOLDER} data.caching=ram data.resize_on_read=False data.pixels=8 {CROP}", MISTAKE, CACHED, images),
    Case(f"data=TinyImageNet {HERE}", MISTAKE, r"^data\.path=here: TinyImageNet is not there .*put it into here and"),
    Case(f"data=TinyImageNet {HERE}", MISTAKE, r"here/tiny-imagenet-200\.zip \(md5 ", make("here/", TINY)),
    Case(f"data=TinyImageNet {HERE}", MISTAKE, r"wnids\.txt: the file is missing", make("here/tiny-imagenet-200/")),
    Case(f"data=ImageNet {HERE}", MISTAKE, r"^data\.path=here: ImageNet is not .*img_train\.tar.*image-net\.org"),
    Case("data.resize_on_read=False", HYDRA, r"Key 'resize_on_read' is not in struct"),
    Case("data=CIFAR10 data.path=no data.download=False data.size= data.valid_size=", MISTAKE, r"put it into no and"),
    # databases
    Case("hyp.train_semi_stochastic=True", MISTAKE, r"^hyp\.train_semi_stochastic=True: .* needs data/db=LMDB"),
    Case("data.db.rounds=2", HYDRA, r"Key 'rounds' is not in struct"),
    Case(f"{LMDB} data.db.rounds=0", MISTAKE, r"^data\.db\.rounds: .*greater than or equal to 1"),
    Case(f"{LMDB} data.db.access=both", MISTAKE, r"^data\.db\.access: .*'get' or 'cursor'"),
    Case(f"{LMDB} data.db.normalize=True", MISTAKE, r"^data\.db\.normalize: .*stored as bytes.*data\.normalize"),
    Case(f"{LMDB} data.db.name=HDF5", MISTAKE, r"^data\.db\.name=HDF5: unknown; known: 'none', 'lmdb'"),
    Case(f"{LMDB} data.db.mean=[0,0]", MISTAKE, r"^data\.db\.mean: 2 values, but .*images of 1 channels"),
    Case(f"{LMDB} {PADDED}", MISTAKE, r"^data\.db\.pixels=8: data\.db\.augmentations_train makes images of 10x10"),
    Case(f"{LMDB} data.db.augmentations_train={{Flop:1}}", MISTAKE, r"^data\.db\.augmentations_train\.Flop: no torch"),
    Case(LMDB, MISTAKE, r"^db/digits_train_60x1: not a whole database of this", with_database(b"a letter")),
    Case(LMDB, MISTAKE, r"^db/digits_train_60x1: not a whole database of this", make("db/digits_train_60x1/")),
    Case(LMDB, MISTAKE, r"^db: not a directory|^db/.*: not a directory|^db: file exists", make("db")),
    # checkpoints
    Case(NAMED, MISTAKE, r"mine\.pth: not a checkpoint of this program \(damaged", with_checkpoint(b"")),
    Case(NAMED, MISTAKE, r"mine\.pth: not a checkpoint of this program \(damaged", with_checkpoint(b"PK\x03\x04 so")),
    Case(NAMED, MISTAKE, r"mine\.pth: a file of another program", with_checkpoint({"weight": torch.zeros(1)})),
    Case(NAMED, MISTAKE, r"mine\.pth: not a checkpoint of this program .*contains more than", with_checkpoint(Evil())),
    Case(NAMED, MISTAKE, r"mine\.pth: is a directory", make("checkpoints/mine.pth/")),
    Case(NAMED, MISTAKE, r"^checkpoints: file exists", make("checkpoints")),
    # places
    Case("base_dir=taken/x", MISTAKE, r"^taken/x/.*: not a directory", make("taken")),
    Case("-m base_dir=taken/x", MISTAKE, r"^taken/x/.*: not a directory", make("taken")),
    Case("", MISTAKE, r"^tables: file exists", make("tables")),
    Case("", MISTAKE, r"table_fb_digits_runs\.csv: is a directory", make("tables/table_fb_digits_runs.csv/")),
]


@pytest.fixture(autouse=True)
def _launched_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    return lambda *arguments: run_in_process(monkeypatch, tmp_path, *SMALL, *arguments)


def words(typed: str) -> list[str]:
    return [typed] if "{" in typed and ": " in typed else typed.split()


def contents(folder: Path) -> dict[Path, bytes]:
    """All files of the user; run folders and locks may come, and the ledger notes what happened."""
    files = [path for path in folder.rglob("[!.]*") if path.is_file() and folder / "outputs" not in path.parents]
    files = [path for path in files if path.name != "ledger.sqlite"]
    return {path: path.read_bytes() for path in files}


def assert_refused(shown: Any, message: str) -> None:
    assert re.search(message, shown.err, flags=re.MULTILINE), shown.err
    assert "Traceback" not in shown.err + shown.out
    assert len(shown.err.splitlines()) == 1 or "Could not" in shown.err or "rror" in shown.err or "nterpol" in shown.err


def test_there_are_enough() -> None:
    assert len(CASES) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.typed[:40]}:{case.message[-20:]}")
def test_it_is_refused_and_nothing_is_damaged(
    case: Case, script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case.prepare(tmp_path)
    before = contents(tmp_path)
    assert script(*words(case.typed)) == case.status
    assert_refused(capsys.readouterr(), case.message)
    assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA", "I;16"])
def test_odd_images_are_converted(script: Callable[..., int], tmp_path: Path, mode: str) -> None:
    with_image("train/b/9.png", mode)(tmp_path)
    assert script(*FOLDER.split(), "hyp.steps=1") == 0


OTHERS = {
    "model.width=8": r"model\.width: 4 there, 8 here",
    "hyp.optim.lr=0.2": r"hyp\.optim\.lr: 0\.1 there, 0\.2 here",
    "seed=7": r"seed: 1 there, 7 here",
    "data.batch_size=30": r"data\.batch_size: 20 there, 30 here",
}


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(NAMED) == 0
    before = contents(tmp_path)
    for change, message in OTHERS.items():
        capsys.readouterr()
        assert script(NAMED, change) == MISTAKE
        assert_refused(capsys.readouterr(), message)
        assert contents(tmp_path) == before


def spoil_weights(content: dict[str, Any]) -> None:
    content["state"]["model"]["fc.bias"][2] = torch.nan


def lose_weights(content: dict[str, Any]) -> None:
    del content["state"]["model"]["fc.weight"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weights, r"mine\.pth: 1 entries of the weights are not finite \(fc\.bias\)"),
        (lose_weights, r"mine\.pth: the weights are those of another model: 1 entries differ \(fc\.weight: \(10, 16\)"),
    ],
)
def test_weights_that_cannot_be_used_are_named(
    script: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    assert script(NAMED, "hyp.steps=1") == 0
    path = tmp_path / "checkpoints" / "mine.pth"
    content = load_checkpoint(path)
    spoil(content)
    save_checkpoint(path, content["state"], config=content["config"], seed=content["seed"])
    capsys.readouterr()
    before = contents(tmp_path)
    assert script(NAMED) == MISTAKE
    assert_refused(capsys.readouterr(), message)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_full_disk_costs_no_checkpoint(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(NAMED, "hyp.steps=2") == 0
    before = contents(tmp_path)
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # below a checkpoint's size
    try:
        assert script(NAMED) == MISTAKE
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_refused(capsys.readouterr(), r"^checkpoints/mine\.pth: file too large; the last checkpoint is")
    assert contents(tmp_path) == before
    assert script(NAMED) == 0


def without_privileges() -> None:
    """Give up root's right to write where it is forbidden; others lack it anyway."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; takes effect at exec


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux capabilities")
@pytest.mark.slow
@pytest.mark.parametrize("place", ["outputs", "tables", "checkpoints", "db"])
def test_a_place_that_cannot_be_written_is_named_before_training(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(mode=0o500)
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *SMALL, NAMED, *LMDB.split()],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=without_privileges,
        capture_output=True,
        text=True,
        check=False,
    )
    (tmp_path / place).chmod(0o700)
    assert ended.returncode == MISTAKE
    assert re.search(rf"{place}.*: permission denied", ended.stderr)
    assert "Traceback" not in ended.stderr
    assert "step 1/" not in ended.stdout
