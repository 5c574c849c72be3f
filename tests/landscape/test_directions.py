"""Random directions have the norms of their normalization and are reproducible; others lead to models."""

from collections.abc import Callable

import cases
import pytest
import torch
from references import vector
from torch import Tensor, nn

from fullbatch.landscape.directions import (
    Directions,
    copy_with,
    directions_between,
    floating_buffers,
    principal_components,
    random_directions,
)
from fullbatch.tensors import trainable


def filters(tensor: Tensor) -> list[Tensor]:
    return list(tensor)


def moved(model: nn.Module, seed: int, scale: float = 0.1) -> nn.Module:
    """Return a copy with other parameters and buffers."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: (tensor + scale * torch.rand(tensor.shape, generator=generator).to(tensor.dtype)).to(tensor.dtype)
        for name, tensor in model.state_dict().items()
    }
    return copy_with(model, state)


@pytest.mark.parametrize("name", ["convolutional", "batchnorm", "linear"])
@pytest.mark.parametrize("ignored", ["biasbn", None])
def test_norms_are_those_of_the_weights_or_one(name: str, ignored: str | None) -> None:
    model = moved(cases.build(name), 0)  # no zeros
    parameters = [p.detach() for p in model.parameters()]
    directions = {
        norm: random_directions(model, 2, norm=norm, ignore_layers=ignored, seed=3).vectors
        for norm in ("filter", "layer", "weight", "dfilter", "DLayer")
    }
    for number in range(2):
        for place, weight in enumerate(parameters):
            parts = {norm: vectors[number][place] for norm, vectors in directions.items()}
            if ignored and weight.ndim <= 1:
                assert all(not part.any() for part in parts.values())
                continue
            for drawn, scaled, own in zip(*map(filters, (parts["dfilter"], parts["filter"], weight)), strict=True):
                assert float(drawn.norm()) == pytest.approx(1)
                torch.testing.assert_close(scaled, drawn * own.norm())
            assert float(parts["DLayer"].norm()) == pytest.approx(1)
            torch.testing.assert_close(parts["layer"], parts["DLayer"] * weight.norm())
            ratio = parts["weight"] / weight.abs()  # the drawn numbers
            torch.testing.assert_close(ratio / ratio.norm(), parts["DLayer"])


def test_a_direction_is_a_function_of_seed_and_number() -> None:
    model = cases.build("convolutional")
    state = torch.get_rng_state()
    first = random_directions(model, 2, seed=1).vectors
    torch.randn(5)
    again = random_directions(model, 1, seed=1).vectors
    other = random_directions(model, 2, seed=2).vectors
    assert torch.equal(vector(first[0]), vector(again[0]))
    assert not torch.equal(vector(first[0]), vector(first[1]))
    assert not torch.equal(vector(first[0]), vector(other[0]))
    torch.set_rng_state(state)
    random_directions(model, 2)
    assert torch.equal(torch.get_rng_state(), state)
    single = random_directions(cases.build("convolutional").float(), 1, seed=1).vectors
    torch.testing.assert_close(vector(single[0]).double(), vector(first[0]), rtol=1e-6, atol=1e-6)


def test_a_filter_of_zeros_does_not_move() -> None:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[0] = 0
    for norm in ("filter", "weight"):
        ((weight, _),) = random_directions(model, 1, norm=norm).vectors
        assert not weight[0].any()
        assert weight.isfinite().all()


def test_frozen_parameters_have_no_direction() -> None:
    model = cases.build("tanh")
    next(model.parameters()).requires_grad_(False)
    assert [part.shape for part in random_directions(model).vectors[0]] == [p.shape for p in trainable(model)]


@pytest.mark.parametrize("count", [1, 2])
def test_the_models_are_at_the_ends(count: int) -> None:
    model = cases.build("batchnorm")
    others = {f"m{seed}": moved(model, seed) for seed in range(count)}
    directions = directions_between(model, others)
    assert len(directions.vectors) == 2
    assert directions.path == ((0, 0), (1, 0), (0, 1))[: count + 1]
    own = floating_buffers(model)
    for point, other in zip(directions.path, [model, *others.values()], strict=True):
        steps = [sum(c * v for c, v in zip(point, part, strict=True)) for part in zip(*directions.vectors, strict=True)]
        end = [p + step for p, step in zip(model.parameters(), steps, strict=True)]
        torch.testing.assert_close(vector(end), vector(list(other.parameters())), rtol=0, atol=1e-14)
        for buffer, expected in zip(directions.buffers_at(own, point), floating_buffers(other), strict=True):
            assert torch.equal(buffer, expected)
    (first, *_), (last, *_) = floating_buffers(model), floating_buffers(others["m0"])
    torch.testing.assert_close(directions.buffers_at(own, (0.25, 0.0))[0], 0.75 * first + 0.25 * last)
    assert torch.equal(directions.buffers_at(own, (-3.0, 0.0))[0], first)
    assert torch.equal(directions.buffers_at(own, (7.0, 0.0))[0], last)


def test_components_are_those_of_the_covariance() -> None:
    model = cases.build("tanh")
    trajectory = [moved(model, seed, scale) for seed, scale in enumerate((3.0, 1.0, 0.5, 0.2))]
    directions = principal_components(model, trajectory)
    rows = torch.stack([vector(list(m.parameters())) for m in trajectory])
    _, singular, components = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    origin = vector(list(model.parameters()))
    for number, parts in enumerate(directions.vectors):
        along = vector(parts)
        unit = along / along.norm()
        assert abs(float(unit @ components[number])) == pytest.approx(1)
        coordinates = (rows - origin) @ unit / along.norm()
        assert [point[number] for point in directions.path] == pytest.approx(coordinates.tolist())
        assert max(coordinates) == pytest.approx(1)
        assert float(coordinates.abs().max()) == pytest.approx(1)
        share = float(singular[number] ** 2 / (singular**2).sum())
        assert f"({share:.1%} of the variance)" in directions.labels[number]


def test_a_trajectory_on_a_line_has_one_component() -> None:
    model = cases.build("tanh")
    end = moved(model, 0)
    states = [
        {k: a + s * (b - a) for (k, a), b in zip(model.state_dict().items(), end.state_dict().values(), strict=True)}
        for s in (0.0, 0.25, 1.0)
    ]
    components = principal_components(model, [copy_with(model, state) for state in states])
    assert len(components.vectors) == 1
    assert [x for x, _ in components.path] == pytest.approx([0, 0.25, 1])
    assert [y for _, y in components.path] == [0, 0, 0]


WRONG: dict[str, Callable[[nn.Module], Directions]] = {
    "norm=fliter: unknown; known: filter, layer, weight, dfilter, dlayer": lambda model: random_directions(
        model, norm="fliter"
    ),
    "ignore_layers=bias: unknown": lambda model: random_directions(model, ignore_layers="bias"),
    "0 other checkpoints": lambda model: directions_between(model, {}),
    "the same parameters as the model: there is nothing": lambda model: directions_between(
        model, {"m": copy_with(model, model.state_dict())}
    ),
    "checkpoint l: the parameters are those of another": lambda model: directions_between(
        model, {"l": nn.Linear(1, 1)}
    ),
    "a trajectory needs at least two checkpoints, not 1": lambda model: principal_components(model, [model]),
    "all the checkpoints have the same": lambda model: principal_components(model, [model, model]),
    "number 2: the parameters": lambda model: principal_components(model, [model, nn.Linear(1, 1)]),
}


def test_wrong_arguments_are_refused() -> None:
    for message, call in WRONG.items():
        with pytest.raises(ValueError, match=message):
            call(cases.build("tanh"))
