"""The checkpoints of `viz.checkpoints`: each counts once, whatever its file is called."""

from pathlib import Path

import pytest
import torch
from composing import settings_for
from torch import nn

from fullbatch.build.landscape import build_directions, build_landscape
from fullbatch.landscape.digests import digest_of_model
from fullbatch.landscape.directions import Directions
from fullbatch.models.model_file import StoredModel


def save(path: str, seed: int, step: int = 0) -> None:
    """Save weights as the paper's code does."""
    torch.manual_seed(seed)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save([{}, nn.Linear(3, 2).state_dict(), {}, {}, step], path)


def digest(seed: int) -> str:
    torch.manual_seed(seed)
    return digest_of_model(nn.Linear(3, 2))


def directions(kind: str, checkpoints: str) -> Directions:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return build_directions(settings_for(f"viz.directions={kind}", f"viz.checkpoints={checkpoints}").viz, model)


@pytest.fixture(autouse=True)
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save("dA/r.pth", 1)
    save("dB/r.pt", 2)
    for number, step in enumerate((30, 10, 20, 20)):
        save(f"outputs/day/{number}/checkpoint.pth", 10 + number, step)
    save("checkpoints/copy.pth", 1)


def test_files_of_one_name_are_two_checkpoints() -> None:
    between = directions("between", "[dA/r.pth,dB/r.pt]")
    assert between.labels == ("towards dA/r.pth", "towards dB/r.pt")
    assert between.description["others"] == [digest(1), digest(2)]


def test_a_trajectory_is_in_the_order_of_steps_and_paths(caplog: pytest.LogCaptureFixture) -> None:
    expected = [digest(10 + number) for number in (1, 2, 3, 0)]
    assert directions("pca", "['outputs/*/*/checkpoint.pth']").description["checkpoints"] == expected
    again = "['outputs/day/[23]/*.pth',./outputs/day/0/checkpoint.pth,'outputs/*/*/checkpoint.pth']"
    assert directions("pca", again).description["checkpoints"] == expected
    assert not caplog.messages
    assert len(directions("pca", "[dA/r.pth,dB/r.pt,copy]").path) == 3
    assert caplog.messages == ["viz.checkpoints: checkpoints/copy.pth and dA/r.pth have the same weights"]


@pytest.mark.parametrize(
    ("checkpoints", "message"),
    [
        ("[dA/r.pth,./dA/r.pth]", r"dA/r\.pth and dA/r\.pth are one file; give each checkpoint once"),
        ("['d*/r*','dA/*']", r"dA/r\.pth and dA/r\.pth are one file"),
        ("[copy,dA/r.pth]", r"copy and r have the same parameters: a plane needs two different checkpoints"),
    ],
)
def test_a_direction_is_never_replaced_by_a_random_one(checkpoints: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^viz\\.checkpoints: {message}"):
        directions("between", checkpoints)


def test_the_weight_decay_of_the_class_belongs_to_the_surface() -> None:
    """A blank weight decay is that of the optimizer's class, which changes the full objective."""
    tiny = ("data=digits", "data.size=20", "data.valid_size=20", "model=linear", "hyp=fb1", "impl.device=cpu", "seed=1")
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    decays = []
    for name in ("SGD", "AdamW"):
        run = settings_for(*tiny, "viz=1d", "hyp/optim=torch", f"hyp.optim.name={name}")
        manifest = build_landscape(run, StoredModel(linear.state_dict()), "x").manifest
        decays.append(manifest["hyp"]["optim"]["weight_decay"])
    assert decays == [0, 0.01]
