"""The closure of a step: one function, counted, whose value and slope agree; and one row whatever was asked of it."""

from typing import Any

import pytest
import torch
from cases import build, cut, samples
from fixed_blocks import FixedBlocks, fixed_step
from references import vector
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.optim.closure import parameters_of
from fullbatch.optim.descent import Descent
from fullbatch.optim.fista import FISTA
from fullbatch.optim.lbfgs import LBFGS
from fullbatch.optim.line_search import NonMonotone
from fullbatch.optim.sam import SAM
from fullbatch.optim.weight_decay import parameter_groups
from fullbatch.optim.wolfe import Wolfe
from fullbatch.training.closure import StepClosure
from fullbatch.training.step import Sampling, Step
from fullbatch.transforms.clipping import ClipByNorm

STRENGTHS = {
    "none": None,
    "block": {"block_strength": 0.7},
    "full": {"block_strength": 0.0, "acc_strength": 0.9},
    "both": {"block_strength": 0.7, "acc_strength": 0.9},
}


def closure_on(name: str, strengths: dict[str, float] | None, transforms: Any = ()) -> StepClosure:
    model = build(name)
    groups = parameter_groups(model, only_linear_layers=True)
    optimizer = Descent(groups, 0.5, weight_decay=0.05, step_rule=Wolfe())
    regularizer = None
    if strengths is not None:
        regularizer = GradRegularizer(model, optimizer, F.cross_entropy, implementation="autograd", **strengths)
    objective = FullBatchObjective(
        model, F.cross_entropy, cut(*samples(), [20, 13]), sub_batch=10, regularizer=regularizer
    )
    return StepClosure(objective, optimizer, transforms, 0)


@pytest.mark.parametrize("strengths", STRENGTHS.values(), ids=STRENGTHS)
@pytest.mark.parametrize("name", ["tanh", "convolutional", "dropout", "batchnorm"])
def test_the_slope_is_that_of_the_value(name: str, strengths: dict[str, float] | None) -> None:
    """Central differences, exact to about h^2 = 1e-10 of the third derivative."""
    closure = closure_on(name, strengths, [ClipByNorm(1e-3)])
    point, parameters = closure.evaluate(), parameters_of(closure.optimizer)
    torch.manual_seed(5)
    directions, start = [torch.randn_like(p) for p in parameters], [p.detach().clone() for p in parameters]
    values = []
    for h in (1e-5, -1e-5):
        with torch.no_grad():
            for parameter, old, direction in zip(parameters, start, directions, strict=True):
                parameter.copy_(old + h * direction)
        values.append(float(closure.loss()))
        assert values[-1] == pytest.approx(float(closure.evaluate().loss), rel=1e-12)
    slope = float(vector(point.gradient) @ vector(directions))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-5, abs=1e-7)
    followed = vector([p.grad for p in parameters if p.grad is not None])
    assert float(followed.norm()) <= 1e-3  # what is followed is clipped, the slope is not


@pytest.mark.parametrize("strengths", STRENGTHS.values(), ids=STRENGTHS)
def test_evaluations_are_counted(strengths: dict[str, float] | None) -> None:
    closure = closure_on("tanh", strengths)
    each = {None: 1, 0.0: 2}.get(None if strengths is None else strengths.get("acc_strength", 0.0), 3)
    passes: list[bool] = []
    closure.objective.model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    assert closure.pure == (strengths is None)
    closure.loss()
    assert (closure.num_gradients, closure.num_losses) == ((0, 1) if closure.pure else (1, 0))
    assert len(passes) == 3  # of three sub-batches, once
    assert any(passes) != closure.pure
    before = closure.num_gradients
    closure.evaluate()
    assert closure.num_gradients - before == each
    closure.optimizer.param_groups[0]["lr"] = 0.0  # then the regularizer adds nothing
    before = closure.num_gradients
    closure.evaluate()
    assert closure.pure
    assert closure.num_gradients - before == 1


def test_only_the_first_evaluation_moves_batch_norm_and_reports() -> None:
    closure = closure_on("batchnorm", {"block_strength": 0.7, "acc_strength": 0.1})
    closure.evaluate()
    buffers, report = [b.clone() for b in closure.objective.model.buffers()], dict(closure.report)
    assert int(closure.objective.model[1].num_batches_tracked) == 3
    with torch.no_grad():
        for parameter in closure.objective.model.parameters():
            parameter.mul_(1.1)
    closure()
    closure.evaluate()
    closure.loss()
    assert all(torch.equal(one, other) for one, other in zip(buffers, closure.objective.model.buffers(), strict=True))
    assert closure.report == report


OPTIMIZERS: dict[str, Any] = {
    "wolfe": lambda p: Descent(p, 0.3, 0.9, step_rule=Wolfe()),
    "non-monotone": lambda p: Descent(p, 0.3, 0.9, step_rule=NonMonotone()),
    "lbfgs": LBFGS,
    "sam": lambda p: SAM(Descent(p, 0.3)),
    "fista": lambda p: FISTA(p, 0.3),
}


def step_on(model: nn.Module, name: str, constant: bool = True) -> Step:
    return fixed_step(model, OPTIMIZERS[name](model.parameters()), constant=constant)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stochastic", [False, True])
def test_a_step_has_one_row_about_its_start(name: str, stochastic: bool) -> None:
    model = build("batchnorm")
    step = step_on(model, name)
    expected = float(step.objective.over(FixedBlocks.all()).loss().loss)
    norm = float(vector(list(model.parameters())).square().sum())
    row = step(0, stochastic=stochastic)
    assert row["param_norm"] == pytest.approx(norm)
    assert int(model[1].num_batches_tracked) == 5
    if not stochastic:
        assert row["train_loss"] == row["full_loss"] == pytest.approx(expected, rel=1e-12)
    assert row["evaluations"] == {"sam": 2, "fista": 1, "non-monotone": 1}.get(name, row["evaluations"])
    assert ("search_failed" in row) == (name in ("wolfe", "non-monotone", "lbfgs"))


@pytest.mark.parametrize("name", ["wolfe", "lbfgs"])
def test_where_all_steps_are_one_function_the_accepted_point_is_not_computed_again(name: str) -> None:
    rows, weights = {}, {}
    for constant in (False, True):
        model = build("convolutional")
        step = step_on(model, name, constant)
        rows[constant] = [step(number, stochastic=False) for number in range(6)]
        weights[constant] = vector(list(model.parameters()))
        assert (step.state.cached is not None) == constant
    assert torch.equal(weights[False], weights[True])
    fresh, cached = (sum(row.pop("evaluations") for row in rows[constant]) for constant in (False, True))
    assert fresh - cached == 5  # every step but the first starts where the last one looked
    assert rows[False] == rows[True]


@pytest.mark.parametrize("name", ["dropout", "batchnorm"])
def test_a_model_that_draws_or_counts_is_evaluated_anew(name: str) -> None:
    model = build(name)
    step = step_on(model, "wolfe")
    for number in range(3):
        assert step(number, stochastic=False)["evaluations"] >= 2
        assert step.state.cached is None
    assert not step.objective.over(FixedBlocks.all()).ignores_keys()
    assert step.objective.over(FixedBlocks.all()).model is model


def test_a_shuffled_or_stochastic_step_is_evaluated_anew() -> None:
    step = step_on(build("tanh"), "wolfe")
    step(0, stochastic=True)
    assert step.state.cached is None
    step.sampling = Sampling(shuffle=True)
    step(1, stochastic=False)
    assert step.state.cached is None


def test_a_penalty_changes_with_the_learning_rate() -> None:
    model = build("tanh")
    optimizer = Descent(model.parameters(), 0.0, step_rule=Wolfe())
    regularizer = GradRegularizer(model, optimizer, F.cross_entropy, block_strength=0.7)
    objective = FullBatchObjective(model, F.cross_entropy, [], regularizer=regularizer)
    step = fixed_step(model, optimizer, objective)
    assert step(0, stochastic=False)["evaluations"] == 1  # nothing moves and there is no penalty, as in a warm-up
    optimizer.param_groups[0]["lr"] = 0.5
    row = step(1, stochastic=False)
    assert row["evaluations"] >= 4
    assert row["full_loss"] > row["train_loss"]


def test_nothing_is_known_after_a_stochastic_step_or_where_somebody_moved_the_parameters() -> None:
    for disturb in ("stochastic", "moved"):
        model = build("tanh")
        step = step_on(model, "lbfgs")
        step(0, stochastic=False)
        assert step.state.cached is not None
        if disturb == "stochastic":
            step(1, stochastic=True)
            assert step.state.cached is None
        else:
            with torch.no_grad():
                model[1].bias.add_(1e-3)
        expected = step.objective.over(FixedBlocks.all()).loss().loss
        assert step(2, stochastic=False)["train_loss"] == float(expected)


def test_a_point_that_was_left_again_is_not_known() -> None:
    model = build("tanh")
    optimizer = Descent(model.parameters(), 1e3, step_rule=Wolfe(max_iter=1))
    step = fixed_step(model, optimizer)
    before = vector(list(model.parameters()))
    first, second = (step(number, stochastic=False) for number in range(2))
    assert first["search_failed"] == 1
    assert torch.equal(vector(list(model.parameters())), before)
    assert first == second


def test_the_row_of_a_known_start_is_that_of_an_evaluation() -> None:
    model = build("tanh")
    step = step_on(model, "lbfgs")
    step(0, stochastic=False)
    evaluation = step.objective.over(FixedBlocks.all()).evaluate()
    row = step(1, stochastic=False)
    assert row["train_loss"] == float(evaluation.loss)
    assert row["full_grad_norm"] == pytest.approx(float(vector(evaluation.gradient).norm()), rel=1e-12)


def test_pure_values_equal_those_with_gradients() -> None:
    def value(closure: StepClosure) -> Tensor:
        return closure.loss()

    for strengths in STRENGTHS.values():
        assert torch.equal(value(closure_on("dropout", strengths)), closure_on("dropout", strengths)())
