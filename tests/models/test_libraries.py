"""Models of torchvision, of timm, and of the user."""

import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fullbatch.models import libraries
from fullbatch.models.registry import build_model


def torchvision_model(name: str, channels: int = 3, classes: int = 10, pixels: int = 32) -> nn.Module:
    return build_model("torchvision", name=name, channels=channels, classes=classes, pixels=pixels)


@pytest.mark.parametrize(
    ("name", "channels", "pixels"),
    [
        ("shufflenet_v2_x0_5", 3, 32),
        ("SqueezeNet1_1", 1, 32),
        ("mobilenet_v3_small", 4, 32),
        pytest.param("vit_b_32", 1, 64, marks=pytest.mark.slow),
        pytest.param("googlenet", 3, 32, marks=pytest.mark.slow),
        pytest.param("inception_v3", 3, 80, marks=pytest.mark.slow),
    ],
)
def test_a_classifier_of_torchvision_accepts_the_images(name: str, channels: int, pixels: int) -> None:
    model = torchvision_model(name, channels, 7, pixels).train()
    outputs = model(torch.randn(2, channels, pixels, pixels))
    assert outputs.shape == (2, 7)
    assert torch.autograd.grad(outputs.sum(), list(model.parameters()))[-1].any()


def test_the_weights_are_those_of_torchvision() -> None:
    from torchvision.models import shufflenet_v2_x0_5

    torch.manual_seed(0)
    ours = torchvision_model("shufflenet_v2_x0_5").state_dict()
    torch.manual_seed(0)
    theirs = shufflenet_v2_x0_5(num_classes=10).state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_other_channels_keep_the_size_of_what_follows() -> None:
    outputs = []
    for channels in (3, 12):
        torch.manual_seed(0)
        first: Any = torchvision_model("squeezenet1_1", channels).features[0]
        assert first.weight.shape[1] == channels
        outputs.append(float(first(torch.randn(8, channels, 32, 32)).detach().std()))
    assert outputs[1] == pytest.approx(outputs[0], rel=0.15)


@pytest.mark.parametrize(
    ("name", "pixels", "warns"),
    [("shufflenet_v2_x0_5", 32, True), ("shufflenet_v2_x0_5", 224, False), ("vgg11", 32, False)],
)
def test_a_stem_for_large_images_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, pixels: int, warns: bool
) -> None:
    monkeypatch.setattr(libraries, "check_compatible", lambda *_: None)
    with caplog.at_level(logging.WARNING, "fullbatch"), torch.device("meta"):
        torchvision_model(name, pixels=pixels)
    messages = [record.getMessage() for record in caplog.records]
    expected = "model.name=shufflenet_v2_x0_5: its stem, a 3x3 convolution with stride 2, is designed for large images"
    assert len(messages) == warns
    assert all(line.startswith(expected) for line in messages)


def stand_in_timm(accepted: dict[str, bool]) -> Any:
    """A module with the used functions of timm and two models, one of which needs the size of the images."""
    timm: Any = types.ModuleType("timm")

    def create_model(name: str, *, pretrained: bool, num_classes: int, in_chans: int, **options: int) -> nn.Module:
        assert not pretrained
        assert ("img_size" in options) == accepted[name]
        stride = 2 if name == "strided" else 1
        return nn.Sequential(
            nn.Conv2d(in_chans, 4, 3, stride), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        )

    timm.create_model = create_model
    timm.is_model = lambda name: name in accepted
    timm.list_models = lambda: list(accepted)
    timm.models = types.SimpleNamespace(
        get_pretrained_cfg=lambda name: types.SimpleNamespace(fixed_input_size=accepted[name])
    )
    return timm


def test_a_classifier_of_timm_accepts_the_images(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "timm", stand_in_timm({"plain": False, "strided": True}))
    given = {"channels": 2, "classes": 7, "pixels": 16}
    for name in ("Plain", "strided"):
        assert build_model("timm", name=name, **given)(torch.zeros(3, 2, 16, 16)).shape == (3, 7)
    assert ["strided" in record.getMessage() for record in caplog.records] == [True]
    with pytest.raises(ValueError, match="name=plane: not a classifier of timm; similar: plain"):
        build_model("timm", name="plane", **given)


def test_the_real_timm() -> None:
    pytest.importorskip("timm")
    for name, pixels in (("resnet10t", 32), ("vit_tiny_patch16_224", 32), ("test_efficientnet", 64)):
        model = build_model("timm", name=name, channels=2, classes=7, pixels=pixels)
        assert model(torch.zeros(2, 2, pixels, pixels)).shape == (2, 7)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm is not installed: pip install 'fullbatch\[timm\]'"):
        build_model("timm", name="resnet18", channels=3, classes=10, pixels=32)


@pytest.fixture
def user_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Write ``mine.py`` into the launch folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def write(body: str) -> None:
        (tmp_path / "mine.py").write_text(f"import torch\nfrom torch import nn\n{body}", encoding="utf-8")

    return write


NETWORK = """
class Net(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 4, 3), nn.Linear(4, classes)
    def forward(self, inputs):
        noisy = self.conv(inputs).mean(dim=(2, 3)) * torch.rand(())  # random in evaluation mode, too
        return self.head(noisy)
"""


def test_a_module_of_the_user_is_imported_from_the_launch_folder(user_module: Callable[[str], None]) -> None:
    user_module(NETWORK)
    path, state = list(sys.path), torch.get_rng_state()
    torch.manual_seed(0)
    model = build_model("import", target="mine:Net", channels=2, classes=3, pixels=8)
    assert (type(model).__name__, model.training) == ("Net", True)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    again: Any = sys.modules["mine"].Net(2, 3)
    assert torch.equal(torch.get_rng_state(), after)  # checking it drew no random numbers
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert sys.path == path
    torch.set_rng_state(state)


MISTAKES = [
    ("Net", "", r"target=Net: should be package\.module:callable"),
    ("mine:", "", r"target=mine:: should be package\.module:callable"),
    ("nowhere.at.all:Net", "", r"target=nowhere\.at\.all:Net: importing .* failed: .*No module named 'nowhere'"),
    ("mine:Nut", NETWORK, "target=mine:Nut: mine has no Nut"),
    ("mine:size", "size = 3", "target=mine:size: not a callable but int"),
    (
        "mine:build",
        "def build(): pass",
        r"target=mine:build: build\(\) takes no argument channels; accepted: no arguments",
    ),
    ("mine:build", "def build(channels, classes): return 3", "returned int instead of a torch.nn.Module"),
    (
        "mine:build",
        "def build(channels, classes): return nn.Conv2d(5, 3, 1)",
        r"fails on images \[1, 2, 8, 8\] \(Given",
    ),
    ("mine:build", "def build(channels, classes): return nn.Flatten()", r"to \[1, 128\] instead of \[1, 3\]"),
    ("mine:build", "import nothing_of_the_kind", "importing mine failed: .*nothing_of_the_kind"),
]


@pytest.mark.parametrize(("target", "body", "message"), MISTAKES)
def test_a_mistake_is_named(user_module: Callable[[str], None], target: str, body: str, message: str) -> None:
    user_module(body)
    with pytest.raises(ValueError, match=message) as refused:
        build_model("import", target=target, channels=2, classes=3, pixels=8)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("resnet19", 32, "name=resnet19: not a classifier of torchvision; similar: resnet18"),
        ("fasterrcnn_resnet50_fpn", 32, "not a classifier of torchvision"),
        ("vit_b_32", 40, r"name=vit_b_32: fails \(Input shape indivisible by patch size!"),
        ("alexnet", 16, r"name=alexnet: fails on images \[1, 3, 16, 16\]"),
    ],
)
def test_a_mistake_with_torchvision_is_named(name: str, pixels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchvision_model(name, pixels=pixels)
