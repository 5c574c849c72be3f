"""Second derivatives agree with differences of gradients for attention, and are refused where PyTorch has none."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from references import assert_no_trace, trace_of, vector
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fullbatch.analysis.flatness import flatness
from fullbatch.analysis.gradient_statistics import gradient_curvature, gradient_statistics, sample_gradient_norms
from fullbatch.analysis.operators import MATRICES
from fullbatch.analysis.sharpness import hessian_trace, sharpness, spectral_density
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradientPenalty, GradRegularizer
from fullbatch.tensors import parameters_at, scaled_sum, trainable

EXACT = ["autograd", "autograd-pen", "forward-over-reverse"]


class Attention(nn.Module):
    """Heads of one query, key and value, by the function that users call."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.last = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        heads = self.project(inputs).unflatten(-1, (3, 2, 2)).unbind(-3)
        mixed = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in heads), is_causal=True)
        outputs: Tensor = self.last(mixed.transpose(1, 2).flatten(-2).mean(1))
        return outputs


class Transformer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.last = layer, nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.layer(inputs).mean(1))
        return outputs


class SelfAttention(nn.MultiheadAttention):
    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        outputs: Tensor = super().forward(inputs, inputs, inputs, need_weights=False)[0]
        return outputs


ATTENTION: dict[str, Callable[[], nn.Module]] = {
    "function": Attention,
    "multihead": lambda: Transformer(SelfAttention(4, 2, batch_first=True)),
    "encoder": lambda: Transformer(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True)),
    "encoder-evaluated": lambda: Transformer(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)).eval(),
}


def objective_of(model: nn.Module, dtype: torch.dtype = torch.float64, **options: Any) -> FullBatchObjective:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(9, 5, 4, generator=generator, dtype=dtype)
    labels = torch.randint(3, (9,), generator=generator)
    blocks = list(zip(inputs.split([6, 3]), labels.split([6, 3]), strict=True))
    return FullBatchObjective(model.to(dtype), F.cross_entropy, blocks, **options)


def directions(model: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in trainable(model)]


def close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-6) -> bool:
    return bool((vector(ours) - vector(theirs)).norm() <= tolerance * vector(theirs).norm())


@pytest.mark.parametrize("name", ATTENTION)
def test_products_of_attention_equal_differences_of_gradients(name: str) -> None:
    torch.manual_seed(0)
    objective = objective_of(ATTENTION[name]())
    v = directions(objective.model)
    expected = objective.hessian_product(v, "central-differences", eps=1e-4)
    for implementation in EXACT:
        assert close(objective.hessian_product(v, implementation), expected)
    assert close(
        [torch.tensor(gradient_curvature(objective, v))], [vector(v) @ vector(expected) / vector(v).square().sum()]
    )


@pytest.mark.parametrize("name", ATTENTION)
def test_gauss_newton_products_of_attention_equal_differences_of_outputs(name: str) -> None:
    torch.manual_seed(0)
    objective = objective_of(ATTENTION[name]())
    model, v, h = objective.model, directions(objective.model), 1e-5
    expected = [torch.zeros_like(x) for x in v]
    for block in objective.sub_batches():
        outputs = []
        for sign in (1, -1, 0):
            with parameters_at(model, scaled_sum(trainable(model), v, sign * h)) if sign else nullcontext():
                torch.manual_seed(block.key)  # of the dropout masks
                outputs.append(model(block.inputs))
        along, p = (outputs[0] - outputs[1]).detach() / (2 * h), outputs[2].softmax(1).detach()
        curved = p * (along - (p * along).sum(1, keepdim=True)) / 9  # the Hessian of the cross-entropy, times J v
        product = torch.autograd.grad(outputs[2], trainable(model), curved, allow_unused=True, materialize_grads=True)
        expected = [total + part for total, part in zip(expected, product, strict=True)]
    assert close(MATRICES["gauss-newton"](objective, v), expected)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("implementation", EXACT)
def test_regularized_gradients_of_attention_equal_differences(name: str, implementation: str) -> None:
    torch.manual_seed(0)
    model = ATTENTION[name]()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    gradients = []
    for method in (implementation, "central-differences"):
        penalty = GradientPenalty(optimizer, 0.7, 0.2, eps=1e-4, implementation=method)
        gradients.append(objective_of(model, regularizer=penalty).evaluate().gradient)
    assert close(*gradients)
    assert not close(gradients[0], objective_of(model).evaluate().gradient, 1e-3)


@pytest.mark.parametrize("name", ["function", "encoder"])
def test_the_regularizer_of_a_training_loop_names_the_context_of_the_forward_pass(name: str) -> None:
    torch.manual_seed(0)
    model = ATTENTION[name]().double().eval()
    (inputs, labels, _), *_ = objective_of(model).sub_batches()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)

    def regularized(implementation: str) -> list[Tensor]:
        with GradRegularizer(model, optimizer, F.cross_entropy, eps=1e-4, implementation=implementation) as regularizer:
            loss = F.cross_entropy(model(inputs), labels)
            grads = torch.autograd.grad(loss, trainable(model), create_graph=regularizer.create_graph)
            return list(regularizer(grads, inputs, labels))

    expected = regularized("central-differences")
    assert close(regularized("forward-over-reverse"), expected)
    with pytest.raises(ValueError, match=r"scaled_dot_product.*central-differences.*sdpa_kernel\(SDPBackend\.MATH\)"):
        regularized("autograd")
    with sdpa_kernel(SDPBackend.MATH):
        assert close(regularized("autograd"), expected)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measuring_attention_leaves_no_trace(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    objective = objective_of(ATTENTION[name](), dtype)
    model = objective.model
    model.last.bias.requires_grad_(False)  # type: ignore[union-attr]
    flags = backends()
    before, kept = trace_of(model), [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    v, arguments = directions(model), (model, F.cross_entropy, objective.data)
    sharpness(*arguments, tolerance=1e-2)
    sharpness(*arguments, matrix="gauss-newton", tolerance=1e-2)
    hessian_trace(*arguments, num_matvecs=6)
    spectral_density(*arguments, num_steps=3)
    flatness(objective, [v], max_steps=2)
    gradient_statistics(objective)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the fused kernel has no batching rule
        sample_gradient_norms(objective)
    assert_no_trace(model, before)
    assert kept == [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert backends() == flags


def backends() -> list[bool]:
    cuda = torch.backends.cuda
    enabled = [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()]
    return [*enabled, torch.backends.mha.get_fastpath_enabled()]


def test_first_derivatives_use_the_fused_kernels_as_before() -> None:
    enabled = []

    class Recording(Attention):
        def forward(self, inputs: Tensor) -> Tensor:
            enabled.append(torch.backends.cuda.flash_sdp_enabled())
            return super().forward(inputs)

    objective = objective_of(Recording())
    v = directions(objective.model)
    objective.loss()
    objective.evaluate()
    objective.hessian_product(v, "central-differences")
    assert all(enabled)
    enabled.clear()
    for implementation in ("autograd", "forward-over-reverse"):
        objective.hessian_product(v, implementation)
    assert not any(enabled[:2])  # of both blocks


class Once(torch.autograd.Function):
    """x^3 with a backward pass that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class Twice(Once):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


class Bag(nn.EmbeddingBag):
    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        return inputs * super().forward((inputs.detach() > 0).long())


def sampled(inputs: Tensor) -> Tensor:
    images = inputs.unflatten(1, (1, 2, 2))
    return F.grid_sample(images, torch.zeros(len(inputs), 2, 2, 2).to(inputs), align_corners=False).flatten(1)


SPECTRAL = r"spectral_norm \(2.*evaluation mode"
UNSUPPORTED: list[tuple[Callable[[], nn.Module], dict[str, str]]] = [
    (
        nn.Hardsigmoid,
        dict.fromkeys(["autograd", "forward-over-reverse", "gauss-newton"], "hardsigmoid_backward has no"),
    ),
    (
        lambda: Bag(2, 4),
        {"autograd": "_embedding_bag_backward has no second", "forward-over-reverse": "_embedding_bag has no forward"},
    ),
    (lambda: Applied(Once.apply), dict.fromkeys(["autograd", "gauss-newton"], "custom .* is once_differentiable")),
    (lambda: Applied(Twice.apply), {"forward-over-reverse": r"custom autograd\.Function .*accepted: autograd"}),
    (lambda: Applied(sampled), {"forward-over-reverse": "grid_sampler_2d has no forward.*accepted: autograd"}),
    (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        dict.fromkeys(["autograd", "forward-over-reverse"], SPECTRAL),
    ),
    (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), dict.fromkeys(["autograd", "forward-over-reverse"], SPECTRAL)),
]


@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning")
@pytest.mark.parametrize(("layer", "messages"), UNSUPPORTED)
def test_an_operation_without_second_derivative_is_named_with_the_alternatives(
    layer: Callable[[], nn.Module], messages: dict[str, str]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 4), layer(), nn.Linear(4, 3))
    objective = objective_of(model)
    v, before = directions(model), trace_of(model)
    expected = objective.hessian_product(v, "central-differences", eps=1e-4)
    assert close(MATRICES["central-differences"](objective, v), expected, 1e-2)
    for method in ("autograd", "forward-over-reverse", "gauss-newton"):
        product = MATRICES[method] if method in MATRICES else lambda o, v, m=method: o.hessian_product(v, m)
        if method in messages:
            for _ in range(2):
                with pytest.raises(ValueError, match=f"{messages[method]}.*forward-differences, central-differences"):
                    product(objective, v)
        elif method != "gauss-newton" and "once" not in str(messages):
            assert close(product(objective, v), expected)
    assert_no_trace(model, before)


@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm_has_exact_products_in_evaluation_mode(norm: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), norm(nn.Linear(20, 4)), nn.Tanh(), nn.Linear(4, 3)).eval()
    objective = objective_of(model)
    v = directions(model)
    assert close(objective.hessian_product(v), objective.hessian_product(v, "central-differences", eps=1e-4))
