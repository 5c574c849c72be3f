"""Building models by name: defaults as in the configuration, mistakes named."""

import inspect

import pytest
import torch
from composing import CONFIG
from filling import inputs
from omegaconf import OmegaConf

import fullbatch
from fullbatch.models.registry import NAMES, build_model, family_named

FOREIGN = ("torchvision", "timm", "import")
FILES = sorted(path for path in (CONFIG / "model").glob("*.yaml") if path.stem not in FOREIGN)


def test_softmax_regression_uses_the_whole_image() -> None:
    model = build_model("linear", channels=3, classes=5, pixels=16).double()
    assert [tuple(p.shape) for p in model.parameters()] == [(5, 768), (5,)]
    images = inputs(4, 3, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(model(images).sum(), images)
    assert gradient.ne(0).all()


@pytest.mark.slow
def test_the_configuration_has_the_defaults_of_the_code() -> None:
    for path in FILES:
        options = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(options, dict)
        name, weights = options.pop("name"), options.pop("weights")
        assert weights is None
        with torch.device("meta"):
            configured = build_model(name, **options, channels=3, classes=10, pixels=32)
            default = build_model(path.stem, channels=3, classes=10, pixels=32)
        assert repr(configured) == repr(default), path
        shapes = [[(key, value.shape) for key, value in model.state_dict().items()] for model in (configured, default)]
        assert shapes[0] == shapes[1], path
        # options that the modules do not show, such as the initialization
        for option, parameter in inspect.signature(family_named(name)[0].build).parameters.items():
            if parameter.default not in (None, inspect.Parameter.empty):
                assert options[option] == parameter.default, (path, option)


def test_every_name_has_its_configuration() -> None:
    assert sorted(NAMES) == sorted((*(path.stem for path in FILES), *FOREIGN))


def test_names_are_case_insensitive() -> None:
    with torch.device("meta"):
        models = [
            fullbatch.build_model(name, channels=3, classes=10, pixels=32)
            for name in ("resnet18", "ResNet18", "RESNET18")
        ]
    assert repr(models[0]) == repr(models[1]) == repr(models[2])


MISTAKES = [
    (
        "alexnet",
        {},
        "name=alexnet: unknown; known: resnet18, resnet20, .*, densenet121, .*, linear, mlp, cnn, torchvision",
    ),
    ("resnet", {}, "name=resnet: needs a depth; known: resnet18"),
    ("resnet", {"depth": 19}, "depth=19: unknown; known: 18, 20, 32"),
    ("resnet18", {"depth": 20}, "name=resnet18 and depth=20 contradict"),
    ("resnet20", {"wide": 3}, "wide: not an option of resnet20; accepted: depth, width, stem"),
    ("resnet20\n", {}, "name=resnet20\n: unknown; known: "),
    ("densenet", {}, "name=densenet: needs a depth"),
    ("densenet122", {}, "depth=122: unknown; known: 121, 161, 169, 201"),
    ("densenet121", {"stem": "imagenet"}, "stem=imagenet: unknown; known: CIFAR, standard, efficient"),
    ("densenet121", {"normalization": "skipinit"}, "normalization=skipinit: unknown; known: BatchNorm2d"),
    ("densenet121", {"downsample": "A"}, "downsample: not an option of densenet121; accepted: depth, stem, conv"),
    ("densenet121", {"bn_size": 0}, "bn_size=0: should be at least 1"),
    ("densenet121", {"pixels": 7}, "images of 7 pixels shrink to nothing"),
    ("densenet121", {"convolution": "reflect", "pixels": 15}, "reflect: images of 15 pixels shrink to one pixel"),
    ("densenet121", {"normalization": "InstanceNorm2d", "pixels": 8}, "InstanceNorm2d: images of 8 pixels shrink"),
    ("vgg12", {}, "depth=12: unknown; known: 11, 13, 16, 19"),
    ("vgg11", {"head": "MNIST"}, "head=MNIST: unknown; known: CIFAR, TinyImageNet, ImageNet"),
    ("vgg11", {"stem": "CIFAR"}, "stem: not an option of vgg11; accepted: depth, head, convolution"),
    ("vgg11", {"pixels": 31}, "images of 31 pixels cannot be halved 5 times; needs 32 pixels"),
    ("pyramidnet111", {}, "depth=111: should be 2 plus a multiple of 6 with bottleneck=False; known: 110, 272"),
    ("pyramidnet110", {"bottleneck": True, "depth": 111}, "name=pyramidnet110 and depth=111 contradict"),
    ("pyramidnet2", {}, "depth=2: should be 2 plus a multiple of 6"),
    ("pyramidnet112", {"bottleneck": True}, "depth=112: should be 2 plus a multiple of 9 with bottleneck=True"),
    ("pyramidnet110", {"alpha": -1}, "alpha=-1: should be at least 0"),
    ("nfn", {"variant": "F8"}, "variant=F8: unknown; known: F0, F1"),
    ("nfnet", {"stem": "standard"}, "stem=standard: unknown; known: CIFAR, ImageNet"),
    ("nfn", {"nonlin": "silu"}, "nonlin=silu: unknown; known: gelu, relu"),
    ("nfn", {"normalization": "BatchNorm2d"}, "normalization: not an option of nfn; accepted: stem, variant"),
    ("nfn", {"pixels": 8}, "images of 8 pixels vanish in the stem CIFAR"),
    ("torchvision", {}, "name=torchvision: needs a name"),
    ("import", {}, "name=import: needs a target"),
    ("linear", {"width": 3}, "width: not an option of linear; accepted: none"),
    ("linear18", {}, "depth: not an option of linear18; accepted: none"),
    ("linear", {"pixels": 0}, "pixels=0: should be at least 1"),
    ("resnet20", {"width": 0}, "width=0: should be at least 1"),
    ("resnet20", {"stem": "imagenet"}, "stem=imagenet: unknown; known: CIFAR, standard, efficient"),
    ("resnet20", {"downsample": "D"}, "downsample=D: unknown; known: A, B, C"),
    ("resnet20", {"downsample": ""}, "downsample=: unknown; known: A, B, C"),
    ("resnet20", {"initialization": "zero"}, "initialization=zero: unknown; known: default, skip-residual"),
    ("resnet20", {"convolution": "wavy"}, "convolution=wavy: unknown; known: Standard, circular"),
    ("resnet20", {"normalization": "Norm"}, "normalization=Norm: unknown; known: BatchNorm2d, .*groupnorm4th"),
    ("resnet20", {"nonlin_fn": "Softmax"}, "nonlin_fn=Softmax: unknown; known: ReLU"),
    ("resnet20", {"normalization": "skipinit", "initialization": "skip-residual"}, "residual: needs a normalization"),
    (
        "resnet20",
        {"convolution": "reflect", "pixels": 4},
        "convolution=reflect: images of 4 pixels shrink to one",
    ),
    ("resnet20", {"convolution": "Circular", "stem": "standard", "pixels": 2}, "circular: images of 2 pixels are sm"),
    ("resnet18", {"normalization": "InstanceNorm2d", "pixels": 8}, "InstanceNorm2d: images of 8 pixels shrink"),
]


@pytest.mark.parametrize(("name", "options", "message"), MISTAKES, ids=[message[:40] for *_, message in MISTAKES])
def test_a_mistake_is_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, **{"channels": 3, "classes": 2, "pixels": 32, **options})  # type: ignore[arg-type]


SMALLEST = [
    {"convolution": "reflect", "pixels": 5},
    {"convolution": "circular", "stem": "standard", "pixels": 3},
    {"normalization": "InstanceNorm2d", "pixels": 5},
    {"normalization": "InstanceNorm2d", "stem": "efficient", "pixels": 17},
]


@pytest.mark.parametrize("options", SMALLEST, ids=str)
def test_the_smallest_accepted_images(options: dict[str, int]) -> None:
    model = build_model("resnet20", width=4, channels=3, classes=2, **options)
    assert model(inputs(2, 3, options["pixels"]).float()).isfinite().all()
