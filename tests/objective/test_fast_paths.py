"""The laws of the objective hold for every fast way to evaluate it, up to the rounding of its dtype.

Each is compared with one float64 autograd, or a dense float64 Hessian, over the same images; see ``fast_paths``.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from cases import SAMPLES, WITHOUT_BATCH_STATISTICS
from fast_paths import COMPILED, EAGER, PRECISE, FastPath, exact_model, exact_samples, parameters
from references import assert_no_trace, dense_hessian, loss_and_gradient, trace_of, vector
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.analysis.operators import gauss_newton
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.tensors import unflatten

EXACT = ["autograd", "forward-over-reverse"]
DIFFERENCES = ["forward-differences", "central-differences"]
NAMES = [*WITHOUT_BATCH_STATISTICS, "batchnorm"]


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    """The compiler gives a module class up that it has compiled too often."""
    yield
    torch.compiler.reset()


def distance(result: Tensor, expected: Tensor) -> float:
    """The norm of the difference relative to that of ``expected``."""
    return float((result.cpu().double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", WITHOUT_BATCH_STATISTICS)
@pytest.mark.parametrize(("batch_size", "sub_batch"), [(1, None), (7, None), (20, 3), (32, None), (33, 8), (33, None)])
@pytest.mark.parametrize("path", parameters(EAGER))
def test_equals_one_float64_autograd_for_every_partition(
    path: FastPath, batch_size: int, sub_batch: int | None, name: str
) -> None:
    model = path.model(name, dropout=False)
    with path.flags():
        objective = path.objective(model, batch_size, sub_batch=sub_batch)
        evaluation, value = objective.evaluate(), objective.loss()
    loss, gradient = loss_and_gradient(exact_model(name), F.cross_entropy, *exact_samples())
    assert distance(vector(evaluation.gradient), gradient) <= path.tolerance
    assert distance(evaluation.loss, loss) <= path.tolerance
    assert distance(value.loss, loss) <= path.tolerance
    assert int(evaluation.num_samples) == SAMPLES
    assert {g.dtype for g in evaluation.gradient} == {torch.float32}


@pytest.mark.parametrize("sub_batch", [33, 8])
@pytest.mark.parametrize("path", parameters(EAGER))
def test_with_batch_statistics_it_equals_float64_on_the_same_sub_batches(path: FastPath, sub_batch: int) -> None:
    """Gradient and running statistics."""
    model, exact = path.model("batchnorm", dropout=False), exact_model("batchnorm")
    with path.flags():
        evaluation = path.objective(model, sub_batch=sub_batch).evaluate(update_buffers=True)
    expected = torch.zeros(())
    count = SAMPLES // sub_batch
    for inputs, labels in zip(*(rows.tensor_split(count) for rows in exact_samples()), strict=True):
        expected = expected + len(labels) / SAMPLES * loss_and_gradient(exact, F.cross_entropy, inputs, labels)[1]
    assert distance(vector(evaluation.gradient), expected) <= path.tolerance
    for ours, theirs in zip(model.buffers(), exact.buffers(), strict=True):
        assert distance(ours, theirs.double()) <= path.tolerance


@cache
def exact_derivatives(name: str) -> tuple[Tensor, Tensor]:
    """Return gradient and Hessian over all images."""
    _, gradient = loss_and_gradient(exact_model(name), F.cross_entropy, *exact_samples())
    return gradient, dense_hessian(exact_model(name), F.cross_entropy, *exact_samples())


def difference_quotient(name: str, implementation: str, eps: float) -> Tensor:
    """Return the difference of two float64 gradients along g that stands for H g."""
    gradient, _ = exact_derivatives(name)
    h = eps / gradient.norm()
    ends = (h, 0) if implementation == "forward-differences" else (h / 2, -h / 2)
    there, here = (gradient_at(name, end * gradient) for end in ends)
    return (there - here) / h


def gradient_at(name: str, move: Tensor) -> Tensor:
    model = exact_model(name)
    with torch.no_grad():
        for parameter, step in zip(model.parameters(), unflatten(move, list(model.parameters())), strict=True):
            parameter.add_(step)
    return loss_and_gradient(model, F.cross_entropy, *exact_samples())[1]


def regularized(path: FastPath, model: nn.Module, implementation: str, eps: float) -> Tensor:
    """Return g + H g."""
    regularizer = path.regularizer(model, implementation, eps)
    with path.flags():
        return vector(path.objective(model, regularizer=regularizer).evaluate().gradient).cpu().double()


def rounding_of_differences(path: FastPath, name: str, eps: float) -> float:
    """Return what g + H g may be off: g, v, and the difference of two gradients, divided by h = eps/||g||."""
    gradient, hessian = exact_derivatives(name)
    norm = float(gradient.norm())
    return path.tolerance * (norm + float(torch.linalg.matrix_norm(hessian, 2)) * norm + 2 * norm * norm / eps)


def assert_regularized(path: FastPath, implementation: str, name: str, result: Tensor) -> None:
    """The difference to g + H g is truncation, which float64 has, too, and rounding."""
    gradient, hessian = exact_derivatives(name)
    product, eps = hessian @ gradient, path.perturbation
    truncation = (difference_quotient(name, implementation, eps) - product).norm()
    bound = truncation + rounding_of_differences(path, name, eps)
    assert bound < product.norm()  # which is the error of adding nothing
    assert (result - gradient - product).norm() <= bound


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("implementation", DIFFERENCES)
@pytest.mark.parametrize("path", parameters(EAGER))
def test_a_regularizer_by_differences_is_exact_but_for_truncation_and_rounding(
    path: FastPath, implementation: str, name: str
) -> None:
    model = path.model(name, dropout=False)
    assert_regularized(path, implementation, name, regularized(path, model, implementation, path.perturbation))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("implementation", "eps", "order"), [(DIFFERENCES[0], 2e-2, 1), (DIFFERENCES[1], 0.1, 2)])
@pytest.mark.parametrize("path", parameters(PRECISE))
def test_in_float32_differences_still_converge_with_their_order(
    path: FastPath, implementation: str, eps: float, order: int, name: str
) -> None:
    gradient, hessian = exact_derivatives(name)
    expected = gradient + hessian @ gradient
    errors = [
        (regularized(path, path.model(name, dropout=False), implementation, e) - expected).norm()
        for e in (2 * eps, eps)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("implementation", EXACT)
@pytest.mark.parametrize("path", parameters(EAGER))
def test_exact_products_are_those_of_the_dense_float64_hessian(path: FastPath, implementation: str, name: str) -> None:
    gradient, hessian = exact_derivatives(name)
    model = path.model(name, dropout=False)
    v = [piece.to(path.device, torch.float32) for piece in unflatten(gradient, list(model.parameters()))]
    with path.flags():
        result = vector(path.objective(model).hessian_product(v, implementation))
    assert distance(result, hessian @ gradient) <= 2 * path.tolerance  # twice as many products as a gradient


@pytest.mark.parametrize("name", ["dropout", "batchnorm"])
@pytest.mark.parametrize("path", parameters(EAGER))
def test_evaluations_leave_no_trace_and_repeat(path: FastPath, name: str) -> None:
    model = path.model(name)
    regularizer = path.regularizer(model, "central-differences")
    before, states = trace_of(model), torch.get_rng_state()
    with path.flags():
        objective = path.objective(model, 20, sub_batch=10, regularizer=regularizer)
        evaluations = [objective.evaluate() for _ in range(2)]
        objective.loss()
        objective.hessian_product([torch.ones_like(p) for p in model.parameters()], DIFFERENCES[0])
    assert_no_trace(model, before)
    assert torch.equal(states, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    if path.device == "cpu":  # elsewhere the order of sums is free, unless the program is told to be deterministic
        assert torch.equal(*(vector(evaluation.gradient) for evaluation in evaluations))


@pytest.mark.parametrize("path", parameters(EAGER))
def test_sums_over_sub_batches_round_as_float32_does(path: FastPath) -> None:
    """The full gradient is the mean of those of its blocks as each comes out by itself."""
    model = path.model("convolutional")
    with path.flags():
        objective = path.objective(model, batch_size=3)
        blocks = list(objective.data)
        parts = [vector(objective.over([block]).evaluate().gradient).double() for block in blocks]
        result = vector(objective.evaluate().gradient).double()
    expected = sum(len(block.labels) / SAMPLES * part for block, part in zip(blocks, parts, strict=True))
    size = max(float(part.norm()) for part in parts)
    rounding = (len(blocks) + 2) * torch.finfo(torch.float32).eps / 2 * size  # of each sum, and of the division
    assert (result - expected).norm() <= rounding


@pytest.mark.parametrize("path", parameters(COMPILED))
def test_compiled_evaluations_obey_the_same_laws(path: FastPath) -> None:
    """All in one test, since compiling takes the time."""
    model, exact = path.model("batchnorm", dropout=False), exact_model("batchnorm")
    regularizer = path.regularizer(model, DIFFERENCES[1])
    with path.flags():
        objective = path.objective(model, regularizer=regularizer)
        before = trace_of(model)
        result, again = (vector(objective.evaluate().gradient).cpu().double() for _ in range(2))
        assert_no_trace(model, before)
        plain = objective.plain().evaluate(update_buffers=True)
    _, gradient = loss_and_gradient(exact, F.cross_entropy, *exact_samples())
    assert distance(vector(plain.gradient), gradient) <= path.tolerance
    for ours, theirs in zip(model.buffers(), exact.buffers(), strict=True):
        assert distance(ours, theirs.double()) <= path.tolerance
    assert_regularized(path, DIFFERENCES[1], "batchnorm", result)
    assert path.device != "cpu" or torch.equal(result, again)
    assert_products(path, objective)


def assert_products(path: FastPath, objective: FullBatchObjective) -> None:
    """Exact products with the compiled model's matrices are those of the model that is not compiled."""
    plain = replace(path, compiled=False).objective(path.model("batchnorm", dropout=False))
    v = [piece.detach().clone() for piece in plain.evaluate().gradient]
    products = [lambda some, v, name=name: some.hessian_product(v, name) for name in EXACT]
    with path.flags():
        for product in (*products, gauss_newton):
            assert distance(vector(product(objective, v)), vector(product(plain, v)).double()) <= 2 * path.tolerance


@pytest.mark.parametrize("path", parameters(COMPILED[:1]))
def test_compiled_dropout_repeats_and_leaves_no_trace(path: FastPath) -> None:
    model = path.model("dropout")
    objective = path.objective(model)
    before = trace_of(model)
    first, second = (objective.evaluate() for _ in range(2))
    assert_no_trace(model, before)
    assert torch.equal(first.loss, second.loss)
    others = [block._replace(key=block.key + 1) for block in objective.data]
    assert float(objective.over(others).evaluate().loss) != float(first.loss)
