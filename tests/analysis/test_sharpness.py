"""Sharpness of small networks compared to their dense Hessian in float64, for different blocks."""

import pytest
import torch
from cases import MODELS, PARTITIONS, build, cut, samples
from references import assert_no_trace, dense_hessian, trace_of, vector
from torch import Tensor, nn
from torch.func import functional_call

from fullbatch import hessian_trace, sharpness, spectral_density
from fullbatch.analysis.eigenvalues import largest_eigenpairs
from fullbatch.analysis.operators import curvature
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.losses import Loss, loss_function
from fullbatch.randomness import derive_seed

LOSSES = {"smoothed": loss_function(label_smoothing=0.1), "squared": loss_function("squared")}


@pytest.mark.parametrize(
    ("name", "partition", "loss"),
    [("linear", "uneven", "squared"), ("tanh", "whole", "smoothed"), ("convolutional", "uneven", "smoothed")],
)
def test_eigenvalues_are_those_of_the_dense_hessian(name: str, partition: str, loss: str) -> None:
    model, (inputs, labels), loss_fn = build(name), samples(), LOSSES[loss]
    dense = dense_hessian(model, loss_fn, inputs, labels) + 0.05 * torch.eye(sum(p.numel() for p in model.parameters()))
    blocks = cut(inputs, labels, PARTITIONS[partition])
    result = sharpness(model, loss_fn, blocks, top_k=4, tolerance=1e-9, weight_decay=0.05)
    assert torch.allclose(
        torch.tensor(result.eigenvalues).double(), torch.linalg.eigvalsh(dense).flip(0)[:4], rtol=1e-6
    )
    v = vector(result.eigenvectors[0])
    assert float(v @ dense @ v) == pytest.approx(result.value, rel=1e-6)


@pytest.mark.parametrize("name", ["dropout", "batchnorm"])
def test_in_training_mode_it_is_the_mean_over_the_sub_batches(name: str) -> None:
    model, (inputs, labels), loss_fn = build(name).train(), samples(), loss_function()
    blocks = cut(inputs, labels, [20, 13])
    dense = sum(
        len(block[1]) / 33 * dense_hessian(model, loss_fn, *block, seed=derive_seed(derive_seed(0, number), 0))
        for number, block in enumerate(blocks)
    )
    before = trace_of(model)
    result = sharpness(model, loss_fn, blocks, top_k=2, tolerance=1e-9)
    assert_no_trace(model, before)
    assert isinstance(dense, Tensor)
    assert torch.allclose(
        torch.tensor(result.eigenvalues).double(), torch.linalg.eigvalsh(dense).flip(0)[:2], rtol=1e-6
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_it_leaves_no_trace(name: str, training: bool) -> None:
    model = build(name).train(training)
    before, modes = trace_of(model), [module.training for module in model.modules()]
    for matrix in ("hessian", "gauss-newton"):
        sharpness(model, loss_function(), cut(*samples(), [20, 13]), matrix=matrix, max_matvecs=5)
    assert_no_trace(model, before)
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is None for p in model.parameters())


def dense_gauss_newton(model: nn.Module, loss_fn: Loss, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return J' H_z J from the whole Jacobian of the outputs."""
    names, parameters = zip(*model.named_parameters(), strict=True)

    def outputs(*values: Tensor) -> Tensor:
        return functional_call(model, dict(zip(names, values, strict=True)), (inputs,))

    parts = torch.autograd.functional.jacobian(outputs, tuple(p.detach() for p in parameters))
    jacobian = torch.cat([part.flatten(2) for part in parts], dim=2).flatten(0, 1)
    z = model(inputs).detach()
    inner = torch.autograd.functional.hessian(lambda flat: loss_fn(flat.view_as(z), labels), z.flatten())
    return jacobian.T @ inner @ jacobian


@pytest.mark.parametrize(("name", "loss"), [("tanh", "smoothed"), ("convolutional", "squared")])
def test_gauss_newton_is_that_of_the_jacobian(name: str, loss: str) -> None:
    model, (inputs, labels), loss_fn = build(name), samples(), LOSSES[loss]
    dense = dense_gauss_newton(model, loss_fn, inputs, labels)
    blocks = cut(inputs, labels, PARTITIONS["uneven"])
    result = sharpness(model, loss_fn, blocks, top_k=3, tolerance=1e-9, matrix="Gauss-Newton")
    assert torch.allclose(
        torch.tensor(result.eigenvalues).double(), torch.linalg.eigvalsh(dense).flip(0)[:3], rtol=1e-6
    )
    operator = curvature(FullBatchObjective(model, loss_fn, blocks), matrix="gauss-newton")
    v = torch.randn(operator.size, dtype=torch.float64)
    assert torch.allclose(operator(v), dense @ v, rtol=1e-9, atol=1e-12)


def test_of_a_linear_model_gauss_newton_is_the_hessian() -> None:
    model, blocks = build("linear"), cut(*samples(), [33])
    both = [
        sharpness(model, loss_function(), blocks, tolerance=1e-9, matrix=name) for name in ("hessian", "gauss-newton")
    ]
    assert both[0].value == pytest.approx(both[1].value, rel=1e-8)


def test_a_preconditioner_scales_both_sides() -> None:
    model, (inputs, labels) = build("tanh"), samples()
    diagonal = [torch.rand_like(p.detach()) + 0.1 for p in model.parameters()]
    scale = vector(diagonal).rsqrt()
    dense = scale[:, None] * dense_hessian(model, loss_function(), inputs, labels) * scale
    objective = FullBatchObjective(model, loss_function(), cut(inputs, labels, [30, 3]))
    pairs = largest_eigenpairs(curvature(objective, preconditioner=diagonal), 2, tolerance=1e-9)
    assert torch.allclose(pairs.values, torch.linalg.eigvalsh(dense).flip(0)[:2], rtol=1e-6)


def test_each_parameter_can_have_its_own_weight_decay() -> None:
    model, (inputs, labels) = build("tanh"), samples()
    decays = [0.3, 0.0, 0.2, 0.0]
    added = torch.cat([torch.full((p.numel(),), d) for p, d in zip(model.parameters(), decays, strict=True)])
    dense = dense_hessian(model, loss_function(), inputs, labels) + torch.diag(added)
    objective = FullBatchObjective(model, loss_function(), [(inputs, labels)])
    pairs = largest_eigenpairs(curvature(objective, weight_decay=decays), 2, tolerance=1e-9)
    assert torch.allclose(pairs.values, torch.linalg.eigvalsh(dense).flip(0)[:2], rtol=1e-6)


def test_a_warm_start_after_a_step_saves_products() -> None:
    model, blocks = build("convolutional"), cut(*samples(), [20, 13])
    first = sharpness(model, loss_function(), blocks, tolerance=1e-6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    warm = sharpness(model, loss_function(), blocks, tolerance=1e-6, start=first)
    cold = sharpness(model, loss_function(), blocks, tolerance=1e-6)
    assert warm.matvecs < 0.7 * cold.matvecs
    assert warm.value == pytest.approx(cold.value, rel=1e-5)


def test_the_trace_and_the_density_are_those_of_the_hessian() -> None:
    model, (inputs, labels) = build("linear"), samples()
    dense = dense_hessian(model, loss_function(), inputs, labels)
    blocks = cut(inputs, labels, [32, 1])
    estimate = hessian_trace(model, loss_function(), blocks, num_matvecs=len(dense) * 3)
    assert estimate.value == pytest.approx(
        float(dense.trace()), rel=1e-9
    )  # a third of the products spans the whole space
    density = spectral_density(model, loss_function(), blocks, num_vectors=4, num_steps=30)
    assert float(density.nodes.max()) == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": 184}, "top_k=184: there are 183 eigenvalues"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"matrix": "fisher"}, "matrix=fisher: unknown; known: hessian, gauss-newton"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sharpness(build("tanh"), loss_function(), cut(*samples(), [33]), **options)  # type: ignore[arg-type]
