"""Checkpoints evaluated again: of any model, by name or path, on their own data and on others; and hostile ones."""

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import ROOT, tree_for
from PIL import Image
from rich.console import Console
from small_models import shrink

from fullbatch.app.identity import RunIdentity
from fullbatch.app.verify import verify
from fullbatch.build.trainer import build_training
from fullbatch.settings.parse import parse_tree
from fullbatch.training.checkpoint import load_checkpoint, save_checkpoint

VERIFY, LANDSCAPE = ROOT / "verify_model_checkpoint.py", ROOT / "crunch_loss_landscape.py"
DIGITS = ["data=digits", "data.size=30", "data.valid_size=20", "hyp=fb1", "impl.threads=1"]
FAMILIES = {
    "resnet": ["model=resnet20", "model.width=4"],
    "norm-free resnet": ["model=resnet20", "model.width=4", "model.normalization=skipinit", "model.stem=efficient"],
    "densenet": ["model=densenet121", "model.depth=7"],
    "vgg": ["model=vgg11", "model.name=vgg5"],
    "pyramidnet": ["model=pyramidnet110", "model.depth=8", "model.alpha=6"],
    "linear": ["model=linear"],
    "torchvision": ["model=torchvision", "model.name=shufflenet_v2_x0_5"],
    "import": ["model=import", "model.target=small_net:build"],
}


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty launch folder, with a module of the user."""
    shutil.copy(ROOT / "tests" / "golden" / "old" / "small_net.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shrink(monkeypatch)
    return tmp_path


def save(path: Path, *overrides: str, config: Callable[[dict[str, Any]], None] = lambda config: None) -> float:
    """Save the checkpoint of a run that has not taken a step, and return its validation loss."""
    tree = tree_for(*overrides)
    run = parse_tree(tree)
    training = build_training(run, 1)
    data, stored = training.problem.data, RunIdentity.of(run, tree).config
    config(stored)
    images = {"channels": data.channels, "classes": len(data.classes), "pixels": data.pixels}
    images |= {"mean": list(data.mean), "std": list(data.std)}
    save_checkpoint(path, training.state.state_dict(), config=stored, seed=1, images=images)
    return float(training.validate(training.state.model, 0).loss)


def verified(*overrides: str) -> float:
    """Return the validation loss that is printed."""
    console = Console(file=io.StringIO(), width=200)
    verify(tree_for(*overrides), overrides, console)
    (line,) = [line for line in console.file.getvalue().splitlines() if "valid_loss" in line]
    return float(re.findall(r"\d+\.\d+", line)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_any_model_is_evaluated_by_its_name(launch: Path, family: str) -> None:
    loss = save(launch / "checkpoints" / "a.pth", *DIGITS, *FAMILIES[family])
    code = FAMILIES[family] if family == "import" else []
    assert verified("impl.checkpoint.name=a", *code) == pytest.approx(loss, abs=1e-6)
    if family == "import":
        add = re.escape(
            "checkpoints/a.pth: the checkpoint's model is small_net:build; to run this code, add model=import"
        )
        with pytest.raises(ValueError, match=f"^{add} model.target=small_net:build$"):
            verified("impl.checkpoint.name=a")


def images(folder: Path, seed: int, pixels: int = 6) -> Path:
    """Write random images of two classes."""
    generator = np.random.default_rng(seed)
    for number, part in enumerate(["train/a", "train/b", "val/a", "val/b"] * 3):
        (folder / part).mkdir(parents=True, exist_ok=True)
        values = generator.integers(0, 40 + 200 * seed, (pixels, pixels, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / part / f"{number}.png")
    return folder


def test_other_data_and_missing_training_images(launch: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Mean and std are the checkpoint's, and training images are not read."""
    own, other = images(launch / "own", 0), images(launch / "other", 1, pixels=9)
    chosen = ["data=imagefolder", "model=linear", "hyp=fb1"]
    loss = save(launch / "a.pth", *chosen, "data.path=own")
    stored = load_checkpoint(launch / "a.pth")
    mean, std = stored["images"]["mean"], stored["images"]["std"]
    same = save(launch / "b.pth", *chosen, "data.path=other", "data.pixels=6", f"data.mean={mean}", f"data.std={std}")
    for path in (*own.glob("train/*/*"), *other.glob("train/*/*")):
        path.write_bytes(path.read_bytes()[:50])  # the header alone
    shutil.rmtree(launch / "cache")
    assert verified("impl.checkpoint.name=./a.pth", "data.path=own") == pytest.approx(loss, abs=1e-6)
    assert verified("impl.checkpoint.name=./a.pth", "data=imagefolder", "data.path=other") == pytest.approx(
        same, abs=1e-6
    )
    del stored["images"]  # as earlier versions wrote it
    torch.save(stored, launch / "old.pth")
    with pytest.raises((OSError, ValueError), match=r"own/train/./\d+\.png"):
        verified("impl.checkpoint.name=./old.pth", "data.path=own")
    caplog.set_level("INFO")
    with pytest.raises(ValueError, match=r"data\.path: blank; imagefolder needs a folder"):
        verified("impl.checkpoint.name=./a.pth")
    assert "data.path is blank; in the checkpoint it was own (to read that, add data.path=own)" in caplog.messages


def test_a_hostile_configuration_reaches_no_file(launch: Path) -> None:
    """Neither its paths, nor its databases, nor its code."""
    marker = launch / "marker"
    (launch / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")

    def spoil(config: dict[str, Any]) -> None:
        trap = tree_for("data=digits", "data/db=LMDB", "data.db.path=trap", "data.db.rebuild_existing_database=True")
        config["data"] |= {
            "db": trap["data"]["db"],
            "path": "trap",
            "mirrors": ["http://127.0.0.1:9/"],
            "download": True,
        }
        config |= {
            key: tree_for("viz.rebuild_existing_database=True", "viz.database_name=x")[key] for key in ("viz", "impl")
        }
        config |= {"base_dir": "trap", "hydra": {"run": {"dir": "trap"}}}

    loss = save(launch / "checkpoints" / "a.pth", *DIGITS, "model=linear", config=spoil)
    before = sorted(launch.rglob("*"))
    assert verified("impl.checkpoint.name=a") == pytest.approx(loss, abs=1e-6)
    save(launch / "checkpoints" / "b.pth", *DIGITS, "model=linear", config=lambda c: c.update(model=imported("evil:x")))
    with pytest.raises(ValueError, match=r"to run this code, add model=import model.target=evil:x"):
        verified("impl.checkpoint.name=b")
    assert {*launch.rglob("*")} - {launch / "checkpoints" / "b.pth"} == {*before}


def imported(target: str) -> dict[str, Any]:
    return {"family": "import", "target": target}


@pytest.mark.parametrize("config", [None, [], {"model": 3}, {"data": 3, "model": {"name": []}}, {"hyp": {"optim": []}}])
def test_a_damaged_configuration_is_named(launch: Path, config: Any) -> None:
    save(launch / "a.pth", *DIGITS, "model=linear")
    torch.save({**load_checkpoint(launch / "a.pth"), "config": config}, launch / "a.pth")
    with pytest.raises(ValueError, match=r"^a\.pth: "):
        verified("impl.checkpoint.name=./a")
