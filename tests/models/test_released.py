"""The entry points of torch.hub, offline, and their requirements."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import ROOT
from filling import fill_, inputs
from original_files import write_list

from fullbatch.models import released
from fullbatch.models.registry import build_model

ENTRIES = {
    "resnet18_fbaug_clip": "final_fbaug_clip_lr04_resnet18.pth",
    "resnet18_fbaug_gradreg": "final_fbaug_gradreg_lr08_resnet18.pth",
    "resnet18_fbaug_gradreg_v2": "final_fbaug_gradreg_lr16_resnet18.pth",
    "resnet18_fbaug_highreg": "final_fbaug_highreg_lr08_resnet18.pth",
    "resnet152_fbaug_highreg": "final_fbaug_highreg_lr08_shuffle_resnet152.pth",
}
ADDRESS = "https://github.com/JonasGeiping/fullbatchtraining/releases/download/v1/"


def entry(name: str, **options: Any) -> torch.nn.Module:
    model: torch.nn.Module = torch.hub.load(str(ROOT), name, source="local", **options)
    return model


def filled(path: Path) -> torch.nn.Module:
    model = build_model("resnet18", channels=3, classes=10, pixels=32)
    fill_(model)
    write_list(path, model, torch.optim.SGD(model.parameters(), lr=0.1), 3000)
    return model.eval()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 in the format of the paper's files."""
    path = tmp_path_factory.mktemp("original") / "x.pth"
    filled(path)
    return path


def test_the_entries_are_those_of_the_paper() -> None:
    hubconf = vars(torch.hub._import_module("hubconf", str(ROOT / "hubconf.py")))
    entries = {name: value for name, value in hubconf.items() if callable(value) and name[0] != "_"}  # see hub.list
    assert entries.keys() == ENTRIES.keys()
    assert all("ResNet" in value.__doc__ for value in entries.values())
    assert hubconf["dependencies"] == ["torch"]


@pytest.mark.slow
def test_a_named_file_is_loaded_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_: pytest.fail("used the network"))
    expected = filled(tmp_path / "x.pth")
    model = entry("resnet18_fbaug_highreg", pretrained=True, file=tmp_path / "x.pth")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.state_dict().items())
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(inputs(2, 3, 32).float()), expected(inputs(2, 3, 32).float()))
    with pytest.raises(ValueError, match=r"x\.pth: the weights are those of another model: \d+ entries differ"):
        entry("resnet152_fbaug_highreg", pretrained=True, file=tmp_path / "x.pth")
    with pytest.raises(FileNotFoundError, match=r"y\.pth"):
        entry("resnet18_fbaug_highreg", pretrained=True, file=tmp_path / "y.pth")


def test_released_files_are_downloaded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = build_model("resnet20", width=4, channels=3, classes=10, pixels=32)
    depths: list[str] = []
    downloads: list[tuple[str, str | None, bool]] = []

    def download(address: str, path: str, checksum: str | None, progress: bool) -> None:
        downloads.append((address, checksum, progress))
        write_list(Path(path), tiny, torch.optim.SGD(tiny.parameters(), lr=0.1), 3000)

    def build(name: str, **_: Any) -> torch.nn.Module:
        depths.append(name)
        return build_model("resnet20", width=4, channels=3, classes=10, pixels=32)

    monkeypatch.setattr(released, "build_model", build)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for name in ENTRIES:
        for _ in range(2):
            entry(name, pretrained=True, progress=False)
    assert downloads == [(ADDRESS + file, None, False) for file in ENTRIES.values()]
    assert depths == ["resnet18"] * 8 + ["resnet152"] * 2
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {*ENTRIES.values()}


def test_without_a_network_the_error_suggests_a_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        OSError, match=r"resnet18\.pth: cannot be downloaded \(no route to host\); pass a copy of it as f"
    ):
        entry("resnet18_fbaug_clip", pretrained=True)


def test_a_checksum_is_verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, original: Path) -> None:
    checksums: list[str | None] = []
    monkeypatch.setitem(released.CHECKSUMS, ENTRIES["resnet18_fbaug_clip"], "abc")

    def download(_: str, path: str, checksum: str | None, __: bool) -> None:
        checksums.append(checksum)
        shutil.copy(original, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    entry("resnet18_fbaug_clip", pretrained=True)
    assert checksums == ["abc"]


@pytest.mark.slow
def test_only_torch_is_needed(original: Path) -> None:
    code = f"""
import sys
for name in ("hydra", "omegaconf", "pydantic", "torchvision", "sklearn", "rich", "filelock", "PIL", "matplotlib"):
    sys.modules[name] = None
import torch
model = torch.hub.load({str(ROOT)!r}, "resnet18_fbaug_clip", source="local", pretrained=True, file="x.pth")
assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
assert torch.hub.load({str(ROOT)!r}, "resnet18_fbaug_clip", source="local").training
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=original.parent)
