"""The regularizer against a dense Hessian, by order of convergence, and without a trace."""

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from cases import MODELS, PARTITIONS, SAMPLES, SHARING, build, cut, samples
from references import assert_no_trace, dense_hessian, trace_of, vector
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.objective.hessian_products import IMPLEMENTATIONS

EXACT = ["autograd", "forward-over-reverse"]
DIFFERENCES = {"forward-differences": 1, "central-differences": 2}
"""By order of convergence."""
WAYS = [*EXACT, *DIFFERENCES]
ALIASES = {
    "finite_diff": "forward-differences",
    "forward-differences-legacy": "forward-differences",
    "autograd-pen": "autograd",
}
ETA, ALPHA, BETA = 0.3, 0.5, 0.7


def regularizer_of(model: nn.Module, implementation: str = "autograd", **options: float) -> GradRegularizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=ETA)
    options = {"block_strength": ALPHA, **options}
    return GradRegularizer(model, optimizer, F.cross_entropy, implementation=implementation, **options)


def gradients(model: nn.Module, regularizer: GradRegularizer, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The sub-batch's gradients as a user computes them; the seed fixes the dropout masks."""
    torch.manual_seed(0)
    loss = F.cross_entropy(model(inputs), labels)
    return torch.autograd.grad(loss, list(model.parameters()), create_graph=regularizer.create_graph)


@cache
def hessian_of(name: str) -> Tensor:
    """Return the Hessian of a model as ``build`` returns it."""
    return dense_hessian(build(name), F.cross_entropy, *samples())


def added_product(name: str, implementation: str, eps: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Return what the regularizer adds, and eta/4 H v with the dense Hessian."""
    model, (inputs, labels) = build(name), samples()
    mean_grad = [torch.randn_like(p) for p in model.parameters()]
    regularizer = regularizer_of(model, implementation, acc_strength=BETA, eps=eps)
    grads = gradients(model, regularizer, inputs, labels)
    plain = vector(grads)
    regularized = regularizer(grads, inputs, labels, pre_grads=mean_grad)
    return vector(regularized) - plain, ETA / 4 * hessian_of(name) @ (ALPHA * plain + BETA * vector(mean_grad))


@pytest.mark.parametrize("name", [*MODELS, *SHARING])
@pytest.mark.parametrize("implementation", EXACT)
def test_exact_implementations_equal_the_dense_hessian(name: str, implementation: str) -> None:
    added, expected = added_product(name, implementation)
    assert (added - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("name", [*MODELS, *SHARING])
@pytest.mark.parametrize(("implementation", "order"), DIFFERENCES.items())
def test_differences_converge_with_their_order(name: str, implementation: str, order: int) -> None:
    added, expected = zip(*(added_product(name, implementation, eps) for eps in (2e-2, 1e-2)), strict=True)
    errors = [(f - e).norm() / e.norm() for f, e in zip(added, expected, strict=True)]
    assert errors[1] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_other_names_are_the_same_implementations() -> None:
    assert {*IMPLEMENTATIONS} == {*WAYS, *ALIASES}
    for alias, name in ALIASES.items():
        assert IMPLEMENTATIONS[alias] == IMPLEMENTATIONS[name]


@pytest.mark.parametrize("name", [*MODELS, *SHARING])
@pytest.mark.parametrize("implementation", WAYS)
def test_a_call_leaves_no_trace(name: str, implementation: str) -> None:
    model, (inputs, labels) = build(name), samples()
    regularizer = regularizer_of(model, implementation)
    grads = gradients(model, regularizer, inputs, labels)
    before = trace_of(model)
    regularizer(grads, inputs, labels)
    assert_no_trace(model, before)


@pytest.mark.parametrize("implementation", EXACT)
def test_the_regularized_gradient_follows_the_full_loss(implementation: str) -> None:
    """With gbar's own dependence on the parameters, 2 beta <g, gbar> is what beta ||gbar||^2 has as its gradient."""
    model, blocks = build("tanh"), cut(*samples(), PARTITIONS["uneven"])
    objective = FullBatchObjective(
        model, F.cross_entropy, blocks, regularizer=regularizer_of(model, implementation, acc_strength=BETA)
    )
    parameters = list(model.parameters())
    losses = [F.cross_entropy(model(inputs), labels) for inputs, labels in blocks]
    weights = [len(labels) / SAMPLES for _, labels in blocks]
    squares = [
        sum(g.square().sum() for g in torch.autograd.grad(loss, parameters, create_graph=True)) for loss in losses
    ]
    loss = sum(w * x for w, x in zip(weights, losses, strict=True))
    mean_square = sum(g.square().sum() for g in torch.autograd.grad(loss, parameters, create_graph=True))
    penalty = ETA / 8 * (ALPHA * sum(w * s for w, s in zip(weights, squares, strict=True)) + BETA * mean_square)
    expected = vector(torch.autograd.grad(loss + penalty, parameters))
    evaluation = objective.evaluate()
    torch.testing.assert_close(evaluation.penalty, penalty.detach(), rtol=1e-12, atol=0)
    assert (vector(evaluation.gradient) - expected).norm() <= 1e-10 * expected.norm()
    assert evaluation.evaluations == 3


@pytest.mark.parametrize("implementation", WAYS)
def test_nothing_is_added_for_v_zero_strength_zero_or_learning_rate_zero(implementation: str) -> None:
    model, (inputs, labels) = build("tanh"), samples()
    regularizer = regularizer_of(model, implementation, block_strength=0.0, acc_strength=1.0)
    grads = gradients(model, regularizer, inputs, labels)
    plain = vector(grads)
    regularizer(grads, inputs, labels, pre_grads=[torch.zeros_like(g) for g in grads])
    assert torch.equal(vector(grads), plain)

    regularizer = regularizer_of(model, implementation, acc_strength=BETA)  # needs no pre_grads while eta is 0
    regularizer.optimizer.param_groups[0]["lr"] = 0.0
    grads = gradients(model, regularizer, inputs, labels)
    regularizer(grads, inputs, labels)
    assert torch.equal(vector(grads), plain)


def test_the_learning_rate_is_read_at_call_time() -> None:
    model, (inputs, labels) = build("tanh"), samples()
    regularizer = regularizer_of(model)
    added = []
    for factor in (1, 2):
        regularizer.optimizer.param_groups[0]["lr"] = factor * ETA
        grads = gradients(model, regularizer, inputs, labels)
        plain = vector(grads)
        added.append(vector(regularizer(grads, inputs, labels)) - plain)
    torch.testing.assert_close(added[1], 2 * added[0])


@pytest.mark.parametrize("container", [list, tuple])
@pytest.mark.parametrize("implementation", ["autograd", "finite_diff"])
def test_gradients_are_changed_in_place_and_returned_without_a_graph(container: type, implementation: str) -> None:
    model, (inputs, labels) = build("tanh"), samples()
    regularizer = regularizer_of(model, implementation)
    grads = container(gradients(model, regularizer, inputs, labels))
    plain = vector(grads)
    returned = regularizer(grads, inputs, labels)
    assert type(returned) is container
    assert not any(grad.requires_grad for grad in returned)
    assert torch.equal(vector(grads), vector(returned))
    assert not torch.equal(vector(grads), plain)


def test_only_the_autograd_variants_need_a_graph() -> None:
    needs = {name for name in IMPLEMENTATIONS if regularizer_of(build("tanh"), name).create_graph}
    assert needs == {"autograd", "autograd-pen"}
    model, (inputs, labels) = build("tanh"), samples()
    grads = torch.autograd.grad(F.cross_entropy(model(inputs), labels), list(model.parameters()))
    with pytest.raises(ValueError, match="create_graph=True"):
        regularizer_of(model)(grads, inputs, labels)


def test_wrong_arguments_are_refused() -> None:
    model, (inputs, labels) = build("tanh"), samples()
    for options, message in [
        ({"implementation": "complex-step"}, "not holomorphic.*forward-over-reverse"),
        ({"implementation": "sideways"}, "implementation=sideways is unknown; known: forward-differences"),
        ({"norm": 1}, "norm=1: .*accepted: 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            GradRegularizer(model, torch.optim.SGD(model.parameters(), 0.1), F.cross_entropy, **options)
    regularizer = regularizer_of(model, acc_strength=1.0)
    with pytest.raises(ValueError, match="acc_strength needs pre_grads"):
        regularizer(gradients(model, regularizer, inputs, labels), inputs, labels)


def test_the_constructor_takes_its_arguments_in_the_documented_order() -> None:
    model = build("tanh")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    regularizer = GradRegularizer(model, optimizer, F.cross_entropy, 2, 0.5, 0.25, 1e-3, "central-differences", False)
    assert (regularizer.block_strength, regularizer.acc_strength, regularizer.eps) == (0.5, 0.25, 1e-3)
    assert regularizer.extra_evaluations == 2


def test_a_copy_of_the_model_does_not_drag_the_regularizer_along() -> None:
    model = build("tanh")
    regularizer_of(model)
    copied, (inputs, _) = copy.deepcopy(copy.deepcopy(model)), samples()
    assert not any(type(hook).__module__.startswith("fullbatch") for hook in copied._forward_pre_hooks.values())
    assert torch.equal(copied(inputs), model(inputs))


def test_a_saved_model_does_not_need_the_package(tmp_path: Path) -> None:
    """It is loaded, and evaluated, by a process in which the package cannot be imported."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double()
    regularizer = regularizer_of(model)
    torch.save(model, tmp_path / "model.pt")
    torch.save(model(samples()[0]), tmp_path / "outputs.pt")
    torch.save(samples()[0], tmp_path / "inputs.pt")
    code = """import sys; sys.modules["fullbatch"] = None
import torch
model, inputs, outputs = (torch.load(f"{n}.pt", weights_only=False) for n in ("model", "inputs", "outputs"))
assert torch.equal(model(inputs), outputs)"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert regularizer.active


@pytest.mark.parametrize("normalized", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_weight_norm_is_regularized_by_differences_alone(normalized: Callable[[nn.Module], nn.Module]) -> None:
    """Its second derivatives are wrong in PyTorch, and there are none in forward mode."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the older of the two
        model = nn.Sequential(nn.Flatten(), normalized(nn.Linear(32, 5)), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, labels = samples()
    for implementation in EXACT:
        regularizer = regularizer_of(model, implementation)
        with pytest.raises(
            ValueError, match=r"weight_norm \(1.*\) are wrong.*accepted: forward-differences, central-differences"
        ):
            regularizer(gradients(model, regularizer, inputs, labels), inputs, labels)
    regularizer = regularizer_of(model, "central-differences")
    regularizer(gradients(model, regularizer, inputs, labels), inputs, labels)


def test_mixed_precision_regularizes_in_bfloat16() -> None:
    model, (inputs, labels) = build("tanh").float(), samples()
    inputs = inputs.float()
    regularizers = [regularizer_of(model, "forward-over-reverse", mixed_precision=low) for low in (False, True)]
    plain, low = (vector(r(gradients(model, r, inputs, labels), inputs, labels)) for r in regularizers)
    assert not torch.equal(plain, low)
    assert (plain - low).norm() < 0.02 * plain.norm()


@pytest.mark.parametrize("implementation", ["forward-differences", "central-differences", "forward-over-reverse"])
def test_inside_the_users_own_autocast_it_adds_the_same(implementation: str) -> None:
    """An autocast keeps the casts of parameters; those of t must not stand in for those of t + h v."""
    model, (inputs, labels) = build("tanh").float(), samples()
    inputs, added = inputs.float(), []
    for own in (True, False):
        regularizer = regularizer_of(model, implementation, eps=1.0, mixed_precision=own)
        with torch.autocast("cpu"):
            grads = gradients(model, regularizer, inputs, labels)
        plain = vector(grads)
        with torch.autocast("cpu", enabled=not own):
            model(inputs)  # fills what it keeps
            added.append(vector(regularizer(grads, inputs, labels)) - plain)
    assert added[0].norm() > 0.01
    assert torch.equal(*added)
