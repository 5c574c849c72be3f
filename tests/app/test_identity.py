"""The identity of a run: its hashes in ledgers and tables of earlier versions stay valid."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from composing import tree_for
from PIL import Image

from fullbatch.app.identity import RunIdentity
from fullbatch.settings.parse import parse_tree

HASHES = {
    "": ("5391ecf35494", "1817b77c30b5"),
    "hyp=gradreg seed=1 name=mine": ("50d1d3e972c5", "019f2ca368a2"),
    "data=digits hyp=fb1 data/db=LMDB data.db.rounds=10 hyp.train_semi_stochastic=True seed=3": (
        *("5d161909c3c4", "5856b080777e"),
    ),
    "impl.mixed_precision=float16 impl.grad_scaling=True hyp/optim=lbfgs analysis=full": (
        *("16546e6cc775", "cc5d75e1c3e2"),
    ),
    "model=vgg16 impl.dtype=double hyp/optim_modification=SAM hyp.steps=7 analysis=edge_of_stability": (
        *("6eb1c6201ec7", "74c66f0293d4"),
    ),
}


def identity(*overrides: str) -> RunIdentity:
    tree = tree_for(*overrides)
    return RunIdentity.of(parse_tree(tree), tree)


def test_hashes_never_change() -> None:
    """Else sweeps would run again what is finished."""
    for command, expected in HASHES.items():
        result = identity(*command.split())
        assert (result.configuration, result.job) == expected, command


@pytest.mark.parametrize(
    ("stored", "given", "mismatches"),
    [
        (("seed=1",), ("seed=1",), []),
        (("seed=1",), ("seed=",), []),
        (("seed=1",), ("seed=2",), ["seed: 1 there, 2 here"]),
        ((), ("hyp.steps=7", "data.caching=ram", "data.download=False", "impl.dtype=double", "name=x"), []),
        ((), ("hyp.optim.lr=7",), ["hyp.optim.lr: 0.1 there, 7 here"]),
        (("data/db=LMDB",), ("data/db=LMDB", "data.db.path=elsewhere", "data.db.access=cursor"), []),
        (("data/db=LMDB",), ("data/db=LMDB", "data.db.rounds=3"), ["data.db.rounds: 1 there, 3 here"]),
    ],
)
def test_a_checkpoint_is_that_of_the_run_unless_its_numbers_differ(
    stored: tuple[str, ...], given: tuple[str, ...], mismatches: list[str]
) -> None:
    other = identity("hyp=fb1", *stored)
    checkpoint = {"config": other.config, "seed": other.seed}
    assert identity("hyp=fb1", *given).mismatches(checkpoint) == mismatches


def make_images(root: Path, value: int = 0) -> Path:
    for place in ("train/a/0.bmp", "train/b/1.bmp", "val/a/2.bmp", "val/b/3.bmp"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), value).save(root / place)
    return root


def of_folder(path: object) -> RunIdentity:
    return identity("data=imagefolder", f"data.path='{path}'", "hyp=fb1", "seed=1")


def test_a_run_belongs_to_the_content_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = of_folder(make_images(tmp_path / "images"))
    checkpoint = {"config": first.config, "seed": 1, "content": first.content}
    shutil.copytree("images", "copied")
    Path("link").symlink_to("images")
    for path in ("images", "images/", "./images", "link", "copied", tmp_path / "copied"):
        assert of_folder(path).job == first.job
        assert of_folder(path).mismatches(checkpoint) == []
    make_images(tmp_path / "images", value=1)  # the same names and sizes in the same place
    for path in ("images", make_images(tmp_path / "other", value=2)):
        assert of_folder(path).job != first.job
        assert of_folder(path).mismatches(checkpoint) == ["data.path: other images there than here"]


def test_checkpoints_without_content_belong_to_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stored = {"config": of_folder(make_images(tmp_path / "images")).config, "seed": 1}
    assert of_folder("./images/").mismatches(stored) == []
    (line,) = of_folder(make_images(tmp_path / "other")).mismatches(stored)
    assert line.startswith("data.path: ")
    official = {"config": identity("data.path=/a").config, "seed": None}
    assert identity("data.path=/b").mismatches(official) == []
    assert identity("data=CIFAR100", "data.path=/a").mismatches(official) != []


def test_the_place_of_official_data_does_not_matter_and_former_hashes_count() -> None:
    moved, default = identity("data.path=/data/cifar"), identity()
    assert (moved.job, moved.configuration) == (default.job, default.configuration)
    assert default.former == default.configuration != moved.former
    attempts = [SimpleNamespace(configuration=moved.former)]
    assert moved.as_recorded(attempts).configuration == moved.former  # type: ignore[arg-type]
    assert default.as_recorded(attempts) == default  # type: ignore[arg-type]


def test_what_makes_another_job() -> None:
    job = ("data=digits", "data.size=60", "model=linear", "hyp=fb1", "hyp.steps=4", "hyp.optim.lr=0.1", "seed=1")
    same = (
        *("", "impl.threads=2", "impl.memory=channels_last", "impl.checkpoint.name=x", "data.download=False"),
        *("base_dir=elsewhere", "hyp.optim.lr=1e-1"),
    )
    others = (
        *("impl.dtype=double", "impl.mixed_precision=True", "impl.mixed_precision=float16", "name=another", "seed=2"),
        *("seed=", "hyp.steps=5", "hyp.optim.lr=0.2", "data.size=50", "model=resnet20"),
    )
    hashes = {change: identity(*job, *([change] if change else [])).job for change in (*same, *others)}
    assert len({hashes[change] for change in same}) == 1
    assert len(set(hashes.values())) == 1 + len(others)
    scaled = {
        identity(*job, "impl.mixed_precision=float16", f"impl.grad_scaling={on}").job for on in ("False", "True", 8)
    }
    assert len(scaled) == 3
