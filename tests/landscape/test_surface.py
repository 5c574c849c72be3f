"""Values of a surface compared to a closed form, to the objective at the center, and to copies of the model."""

import cases
import numpy as np
import pytest
import torch
from references import assert_no_trace, dense_hessian, loss_and_gradient, trace_of, vector
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.landscape.any_module import loss_landscape
from fullbatch.landscape.directions import Directions, copy_with, directions_between, random_directions
from fullbatch.landscape.grid import Axis, Grid
from fullbatch.landscape.surface import PointEvaluator, surface_of
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.tensors import mode
from fullbatch.training.validation import validate

PLANE = {"x": Axis(-1, 1, 5), "y": Axis(-2, 1, 4)}
SIZES = cases.PARTITIONS["uneven"]


def squared(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - F.one_hot(labels, cases.CLASSES)).square().sum(dim=1).mean() / 2


def at(model: nn.Module, directions: Directions, point: tuple[float, float]) -> nn.Module:
    """Return a copy of the model at a point."""
    state = model.state_dict()
    names = [name for name, _ in model.named_parameters()]
    for coordinate, parts in zip(point, directions.vectors, strict=True):
        state = {**state, **{n: state[n] + coordinate * part for n, part in zip(names, parts, strict=True)}}
    return copy_with(model, state)


def test_the_surface_of_a_quadratic_is_its_closed_form() -> None:
    model, decay = cases.build("linear"), 0.3
    inputs, labels = cases.samples()
    directions = random_directions(model, seed=4, ignore_layers=None)
    surface = loss_landscape(model, squared, cases.cut(inputs, labels, SIZES), directions, **PLANE, weight_decay=decay)
    loss, gradient = loss_and_gradient(model, squared, inputs, labels)
    hessian = dense_hessian(model, squared, inputs, labels)
    start = vector(list(model.parameters()))
    for number, point in enumerate(Grid(**PLANE).points()):
        step = sum(c * vector(parts) for c, parts in zip(point, directions.vectors, strict=True))
        expected = float(loss + gradient @ step + step @ hessian @ step / 2)
        assert surface.loss.reshape(-1)[number] == pytest.approx(expected, rel=1e-12)
        full_loss = expected + decay / 2 * float((start + step).square().sum())
        assert surface.full_loss.reshape(-1)[number] == pytest.approx(full_loss, rel=1e-12)


@pytest.mark.parametrize("name", cases.MODELS)
def test_its_center_is_the_objective_in_the_same_mode(name: str) -> None:
    model, data = cases.build(name), cases.cut(*cases.samples(), SIZES)
    for evaluating in (True, False):
        surface = loss_landscape(model, F.cross_entropy, data, x=Axis(0, 0, 1), model_eval=evaluating, sub_batch=4)
        with mode(model, training=not evaluating):
            expected = FullBatchObjective(model, F.cross_entropy, data, sub_batch=4).loss()
        assert surface.loss.item() == float(expected.loss)
        assert surface.accuracy.item() == float(expected.accuracy)


@pytest.mark.parametrize("name", cases.MODELS)
def test_other_points_are_the_objective_of_a_copy(name: str) -> None:
    model, point = cases.build(name), (0.4, -0.7)
    directions, data = random_directions(model, seed=1), cases.cut(*cases.samples(), SIZES)
    value = PointEvaluator(FullBatchObjective(model, F.cross_entropy, data), directions)(point)
    copied = at(model, directions, point).eval()
    assert value.loss == pytest.approx(float(FullBatchObjective(copied, F.cross_entropy, data).loss().loss), rel=1e-13)


@pytest.mark.parametrize("name", cases.MODELS)
def test_blocks_make_no_difference(name: str) -> None:
    model = cases.build(name)
    surfaces = {
        name: loss_landscape(model, F.cross_entropy, cases.cut(*cases.samples(), sizes), x=Axis(-1, 1, 3))
        for name, sizes in cases.PARTITIONS.items()
    }
    for surface in surfaces.values():
        np.testing.assert_allclose(surface.loss, surfaces["whole"].loss, rtol=1e-12)
        np.testing.assert_allclose(surface.accuracy, surfaces["whole"].accuracy, rtol=1e-6)


def test_the_regularizer_is_part_of_the_full_objective() -> None:
    model, point = cases.build("tanh"), (0.5, 0.25)
    data, directions = cases.cut(*cases.samples(), SIZES), random_directions(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.8)
    regularizer = GradRegularizer(model, optimizer, F.cross_entropy, block_strength=0.5, acc_strength=0.25)
    objective = FullBatchObjective(model, F.cross_entropy, data, regularizer=regularizer)
    value = PointEvaluator(objective, directions)(point)
    copied = at(model, directions, point).eval()
    gradients = [loss_and_gradient(copied, F.cross_entropy, *block)[1] for block in data]
    shares = [size / cases.SAMPLES for size in SIZES]
    mean = sum(share * g for share, g in zip(shares, gradients, strict=True))
    squares = sum(share * g.square().sum() for share, g in zip(shares, gradients, strict=True))
    penalty = 0.8 / 8 * (0.5 * squares + 0.25 * mean.square().sum())
    assert value.full_loss - value.loss == pytest.approx(float(penalty), rel=1e-10)
    assert np.isnan(PointEvaluator(objective, directions, full=False)(point).full_loss)


def test_statistics_are_re_estimated_at_every_point() -> None:
    model, point = cases.build("batchnorm"), (0.6, -0.2)
    data, directions = cases.cut(*cases.samples(), SIZES), random_directions(model)
    objective = FullBatchObjective(model, F.cross_entropy, data)
    value = PointEvaluator(objective, directions, recalibrate=True)(point)
    blocks = list(objective.sub_batches())
    expected = validate(at(model, directions, point), F.cross_entropy, data, recalibration=blocks)  # type: ignore[arg-type]
    assert value.loss == pytest.approx(float(expected.loss), rel=1e-12)
    assert value.loss != pytest.approx(PointEvaluator(objective, directions)(point).loss, rel=1e-3)


def test_between_two_models_each_has_its_own_statistics() -> None:
    model, other = cases.build("batchnorm", 0), cases.build("batchnorm", 1)
    data = cases.cut(*cases.samples(), SIZES)
    for some in (model, other):
        FullBatchObjective(some, F.cross_entropy, data).evaluate(update_buffers=True)
    surface = loss_landscape(model, F.cross_entropy, data, directions_between(model, {"b": other}), x=Axis(0, 1, 2))
    expected = [float(FullBatchObjective(m.eval(), F.cross_entropy, data).loss().loss) for m in (model, other)]
    assert surface.loss.reshape(-1).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("evaluating", [True, False])
@pytest.mark.parametrize("recalibrate", [True, False])
def test_the_model_is_restored(evaluating: bool, recalibrate: bool) -> None:
    model, other = cases.build("batchnorm"), cases.build("batchnorm", 1)
    list(model.children())[1].eval()
    modes = [module.training for module in model.modules()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.8)
    regularizer = GradRegularizer(model, optimizer, F.cross_entropy, block_strength=0.5)
    objective = FullBatchObjective(model, F.cross_entropy, cases.cut(*cases.samples(), SIZES), regularizer=regularizer)
    directions = directions_between(model, {"b": other})
    before = trace_of(model)
    evaluate = PointEvaluator(objective, directions, model_eval=evaluating, recalibrate=recalibrate)
    first = evaluate((0.7, 0.1))
    assert_no_trace(model, before)
    assert evaluate((0.7, 0.1)) == first

    def fails() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate((1.0, 1.0), fails)
    assert_no_trace(model, before)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_missing_points_are_nan() -> None:
    grid, directions = Grid(**PLANE), random_directions(cases.build("tanh"))
    value = PointEvaluator(FullBatchObjective(cases.build("tanh"), squared, [cases.samples()]), directions)((0.5, -1.0))
    surface = surface_of(grid, {(0.5, -1.0): value}, directions)
    assert surface.loss[3, 1] == value.loss
    assert np.isnan(surface.loss).sum() == surface.loss.size - 1


def test_contradictions_are_refused() -> None:
    model, data = cases.build("batchnorm"), [cases.samples()]
    with pytest.raises(ValueError, match="which model_eval=False does not use"):
        loss_landscape(model, F.cross_entropy, data, model_eval=False, recalibrate=True)
    with pytest.raises(ValueError, match="a plane needs two"):
        loss_landscape(model, F.cross_entropy, data, random_directions(model, 1), y=Axis(0, 1, 2))
