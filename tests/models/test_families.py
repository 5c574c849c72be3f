"""Laws of every family (learning, exact Hessian products, precision), and laws of single families."""

from typing import Any

import pytest
import torch
from references import loss_and_gradient, vector
from small_models import CASES, assert_exact_hessian_products, images_for, move_from_zeros, shrink, small
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.models import nfnets
from fullbatch.models.registry import build_model
from fullbatch.models.summary import independent_of_blocks, summarize_model
from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.objective.losses import loss_function
from fullbatch.runtime.memory_format import order_weights

every_family = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def three_steps(case: str, loss: str | None = None, memory_format: Any = None, **options: Any) -> list[float]:
    """Return the losses before each of three regularized full-batch steps without warm-up, and after the last."""
    return steps_of(small(case), images_for(case, 12), loss, memory_format or torch.contiguous_format, **options)


def steps_of(
    model: nn.Module,
    inputs: Tensor,
    loss: str | None,
    memory_format: torch.memory_format,
    lr: float = 0.02,
    **options: Any,
) -> list[float]:
    model = order_weights(model, memory_format).train()
    inputs = inputs.float().to(memory_format=memory_format)
    loss_fn = loss_function(loss)
    labels = (torch.arange(12 // loss_fn.copies) % 5).repeat_interleave(loss_fn.copies)
    blocks = list(zip(inputs.split(6), labels.split(6), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    regularizer = GradRegularizer(model, optimizer, loss_fn, block_strength=0.5, **options)
    arithmetic = Arithmetic(autocast=options.get("mixed_precision", False))
    objective = FullBatchObjective(model, loss_fn, blocks, regularizer=regularizer, arithmetic=arithmetic)
    losses = []
    for _ in range(3):
        evaluation = objective.evaluate(update_buffers=True)
        losses.append(float(evaluation.loss))
        for parameter, gradient in zip(model.parameters(), evaluation.gradient, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [*losses, float(objective.loss().loss)]


LOSSES = (None, "squared", "maxup-2")


@pytest.mark.parametrize(
    ("case", "loss"),
    [*((case, LOSSES[number % 3]) for number, case in enumerate(CASES)), ("resnet", "squared"), ("resnet", "maxup-2")],
)
def test_the_loss_falls(case: str, loss: str | None) -> None:
    losses = three_steps(case, loss)
    assert losses[0] > losses[-1], losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        *[("resnet18", 8), ("densenet121", 16), ("vgg16", 32), ("pyramidnet110", 8)],
        pytest.param("nfn", 9, marks=pytest.mark.soak),
    ],
)
def test_the_loss_of_the_real_networks_falls(monkeypatch: pytest.MonkeyPatch, name: str, pixels: int) -> None:
    monkeypatch.undo()  # use the tables of the families
    inputs = images_for("resnet", 12, pixels)
    model = build_model(name, channels=3, classes=5, pixels=pixels)
    losses = steps_of(model, inputs, None, torch.channels_last, lr=0.002)
    assert losses[0] > losses[-1], losses


@every_family
def test_memory_format_and_low_precision_change_losses_by_rounding_only(case: str) -> None:
    losses = three_steps(case)
    assert three_steps(case, memory_format=torch.channels_last) == pytest.approx(losses, rel=1e-4)
    assert three_steps(case, mixed_precision=torch.bfloat16) == pytest.approx(losses, rel=3e-2)


@every_family
def test_both_exact_hessian_products_agree(case: str) -> None:
    assert_exact_hessian_products(small(case).double(), images_for(case, 4))


@every_family
def test_the_gradient_is_independent_of_the_blocks_where_the_model_says_so(case: str) -> None:
    model = small(case).double().train()
    move_from_zeros(model)
    inputs, labels = images_for(case, 9), torch.arange(9) % 5
    expected = loss_and_gradient(model, F.cross_entropy, inputs, labels)[1]
    blocks = list(zip(inputs.split(4), labels.split(4), strict=True))
    gradient = vector(FullBatchObjective(model, F.cross_entropy, blocks).evaluate().gradient)
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-10 * float(expected.abs().max())) == (
        independent_of_blocks(model)
    )


def test_random_dropping_depends_on_the_blocks() -> None:
    for case, options in (
        ("vgg", {"drop_rate": 0.5, "normalization": "groupnorm8"}),
        ("nfn", {"use_dropout": True}),
        ("nfn", {"stochdepth_rate": 0.1}),
    ):
        assert not independent_of_blocks(small(case, **options)), options


@pytest.mark.parametrize(
    ("options", "norm", "independent"),
    [
        ({}, "BatchNorm2d", False),
        ({"normalization": "groupnorm8"}, "GroupNorm", True),
        ({"normalization": "InstanceNorm2d"}, "InstanceNorm2d", True),
        ({"normalization": "sequentialghostnorm"}, "SequentialGhostNorm", False),
        ({"normalization": "skipinit"}, "none", True),
    ],
    ids=str,
)
def test_the_summary_names_the_norm(options: dict[str, Any], norm: str, independent: bool) -> None:
    summary = summarize_model("resnet20", pixels=32, **{"width": 8, **options})
    assert (summary.norm, summary.independent) == (norm, independent)


def test_models_of_libraries_are_summarized() -> None:
    summary = summarize_model("torchvision", name="shufflenet_v2_x0_5", pixels=64, classes=7)
    assert (summary.parameters, summary.norm, summary.independent) == (348_967, "BatchNorm2d", False)


def test_flops_count_two_for_a_product_and_a_sum() -> None:
    assert summarize_model("linear", pixels=32).flops == 2 * 10 * 3072
    assert summarize_model("resnet20", pixels=32).flops == pytest.approx(2 * 40.8e6, rel=0.02)  # 40.8 M, as published


# DenseNet

DENSE = [
    *({"stem": kind} for kind in ("standard", "efficient")),
    *({"convolution": kind} for kind in ("circular", "reflect", "replicate", "standardized")),
    *({"normalization": kind} for kind in ("groupnorm4th", "groupnorm1", "InstanceNorm2d", "Identity")),
    {"normalization": "sequentialghostnorm"},
    {"nonlin_fn": "SiLU"},
    {"bn_size": 2},
    {"drop_rate": 0.3},
]


@pytest.mark.parametrize("options", DENSE, ids=str)
def test_every_variation_of_a_dense_network_learns(options: dict[str, Any]) -> None:
    model = small("densenet", pixels=64, **options).double()
    loss = F.cross_entropy(model(images_for("densenet", 5, 64)), torch.arange(5))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert loss.isfinite()
    assert gradients[0].any()
    assert gradients[-1].any()


def test_recomputing_changes_only_the_memory() -> None:
    models = [small("densenet", memory_efficient=kind).double().train() for kind in (False, True)]
    inputs, labels = images_for("densenet"), torch.arange(6) % 5
    (loss, gradient), (other_loss, other_gradient) = (
        loss_and_gradient(model, F.cross_entropy, inputs, labels) for model in models
    )
    assert torch.equal(loss, other_loss)
    assert torch.equal(gradient, other_gradient)
    for buffer, other in zip(models[0].buffers(), models[1].buffers(), strict=True):
        assert torch.equal(buffer, other)
    counted = [b for name, b in models[1].named_buffers() if name.endswith("num_batches_tracked")]
    assert all(int(count) == 1 for count in counted)


def test_for_large_images_the_network_is_that_of_torchvision() -> None:
    from torchvision.models import densenet121

    theirs = densenet121(num_classes=10).double().eval()
    ours = build_model("densenet121", channels=3, classes=10, pixels=64, stem="standard").double().eval()
    ours.load_state_dict(theirs.state_dict())
    inputs = images_for("densenet", 2, 64)
    torch.testing.assert_close(ours(inputs), theirs(inputs))


# VGG


def test_the_large_head_is_that_of_torchvision() -> None:
    from torchvision.models import vgg11_bn

    with torch.device("meta"):
        theirs = vgg11_bn(num_classes=10).state_dict()
        ours = build_model("vgg11", channels=3, classes=10, pixels=224, head="ImageNet").state_dict()
    assert list(ours) == list(theirs)
    assert ours["classifier.0.weight"].shape[1] == theirs["classifier.0.weight"].shape[1] == 25_088


def test_heads_take_feature_maps_of_their_size() -> None:
    images = images_for("vgg", 5, 64).float()
    for head, features in {"CIFAR": 8, "TinyImageNet": 8 * 4, "ImageNet": 8 * 49}.items():
        model: Any = small("vgg", head=head, pixels=64, drop_rate=0.5)
        first = next(module for module in model.classifier.modules() if isinstance(module, nn.Linear))
        assert first.in_features == features
        assert not torch.equal(model(images), model(images))  # dropout
        model.eval()
        assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("classical", [True, False])
def test_classical_weights_are_an_option(classical: bool) -> None:
    model: Any = small("vgg", classical_weight_init=classical)
    assert bool(model.features[0].bias.eq(0).all()) == classical
    large: Any = build_model("vgg11", channels=3, classes=2000, pixels=32, classical_weight_init=classical)
    assert (float(large.classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.02)) == classical


# PyramidNet


def test_the_width_grows_evenly_by_alpha() -> None:
    with torch.device("meta"):
        model: Any = build_model("pyramidnet110", channels=3, classes=10, pixels=32)
    widths = [block.conv1.out_channels for stage in (model.layer1, model.layer2, model.layer3) for block in stage]
    assert widths == [round(16 + 84 * (index + 1) / 54) for index in range(54)]
    assert widths[-1] == 100


@pytest.mark.parametrize(("case", "pixels"), [("pyramidnet", 7), ("pyramidnet", 8), ("pyramidnet-bottleneck", 7)])
def test_shortcuts_pad_new_channels_with_zeros(case: str, pixels: int) -> None:
    model: Any = small(case, pixels=pixels).double().eval()
    block = model.layer2[0]
    with torch.no_grad():
        for parameter in getattr(block, f"bn{block.length + 1}").parameters():
            parameter.zero_()  # the branch is zero
    inputs = torch.randn(2, block.conv1.in_channels, pixels, pixels, dtype=torch.float64)
    outputs = block(inputs)
    pooled = F.avg_pool2d(inputs, 2, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(outputs[:, : inputs.shape[1]], pooled)
    assert outputs[:, inputs.shape[1] :].eq(0).all()
    assert outputs.shape[1] > inputs.shape[1]


# NFNet


def blocks_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nfnets.NFBlock)]


def test_filters_are_standardized() -> None:
    layer = nfnets.ScaledConv2d(3, 4, 3).double()
    with torch.no_grad():
        layer.gain.copy_(torch.arange(1.0, 5.0).view(4, 1, 1, 1))
        layer.bias.copy_(torch.arange(4.0))  # type: ignore[union-attr]
    filters = layer.weight.detach().flatten(1)
    deviations = filters - filters.mean(dim=1, keepdim=True)
    variance = deviations.square().sum(dim=1, keepdim=True) / 26
    weight = deviations / (27 * variance).sqrt() * torch.arange(1.0, 5.0)[:, None]
    inputs = images_for("nfn")
    torch.testing.assert_close(layer(inputs), F.conv2d(inputs, weight.view(4, 3, 3, 3), layer.bias))


@pytest.mark.parametrize("name", ["gelu", "relu"])
def test_activations_keep_the_variance(name: str) -> None:
    function, scale = nfnets.ACTIVATIONS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1_000_000, generator=generator, dtype=torch.float64)
    assert float((function(inputs) * scale).var()) == pytest.approx(1, rel=0.01)


def test_blocks_normalize_the_variance_of_their_input() -> None:
    betas = [block.beta for block in blocks_of(small("nfn", alpha=0.5))]
    after_one = 1.25**-0.5
    assert betas == pytest.approx([1.0, after_one, after_one, 1.5**-0.5, after_one])


def test_variants_multiply_the_depth() -> None:
    for index in (0, 1, 7):
        assert len(blocks_of(small("nfn", variant=f"f{index}"))) == 5 * (index + 1)


def test_branches_are_dropped_per_sample_at_a_growing_rate() -> None:
    model = small("nfn", stochdepth_rate=0.5).double().train()
    blocks = blocks_of(model)
    assert [block.drop_rate for block in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    last = blocks[-1]
    with torch.no_grad():
        last.skip_gain.fill_(1.0)
    inputs = torch.randn(400, 32, 2, 2, dtype=torch.float64)
    shortcut = last.conv_shortcut(F.avg_pool2d(last.activation(inputs) * last.beta, 2))
    kept = last.eval()(inputs)
    outputs = last.train()(inputs)
    dropped = (outputs == shortcut).flatten(1).all(dim=1)
    assert float(dropped.double().mean()) == pytest.approx(0.4, abs=0.1)
    torch.testing.assert_close(outputs[~dropped], kept[~dropped])


def test_dropout_is_optional_and_depends_on_the_variant() -> None:
    for variant, rate in {"F0": 0.2, "F1": 0.3, "F2": 0.4, "F4": 0.5}.items():
        with torch.device("meta"):
            models: list[Any] = [small("nfn", variant=variant, use_dropout=use) for use in (False, True)]
        assert [model.dropout.p for model in models] == [0.0, rate]


def test_images_of_any_size_fit() -> None:
    for stem, pixels in (("CIFAR", 9), ("CIFAR", 33), ("ImageNet", 65), ("ImageNet", 224)):
        assert small("nfn", stem=stem, pixels=pixels)(images_for("nfn", 1, pixels).float()).shape == (1, 5)


def test_the_blocks_are_initially_their_shortcuts() -> None:
    model: Any = small("nfn").double()
    block = model.body[2]  # no change of width or size
    inputs: Tensor = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    assert torch.equal(block(inputs), inputs)
