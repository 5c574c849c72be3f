"""Directions through the space of parameters: random and normalised, between models, along a trajectory.

A surface lies at t(x, y) = t0 + x d_1 + y d_2, where t0 are the trainable parameters of a model. Random directions are
normalised as in Li et al., *Visualizing the Loss Landscape of Neural Nets* (NeurIPS 2018). With w a parameter and d the
direction's part for it, and filters the slices w[i] along the first dimension (the single entries of a vector):

    filter    d[i] <- d[i] ||w[i]|| / ||d[i]||        dfilter    d[i] <- d[i] / ||d[i]||
    layer     d    <- d ||w|| / ||d||                 dlayer     d    <- d / ||d||
    weight    d    <- d |w|, entry by entry
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fullbatch.landscape.digests import digest_of_model
from fullbatch.landscape.grid import Point
from fullbatch.models.weights import load_weights
from fullbatch.randomness import derive_seed
from fullbatch.tensors import clones, trainable

Normalisation = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Directions:
    """One or two directions, and what belongs to them.

    Attributes:
        vectors: each shaped like the trainable parameters.
        description: what they are a function of, plain JSON; a stored surface is known by it.
        labels: of the axes, one for each direction.
        anchors: the floating-point buffers of the models at the ends of the first directions: batch-norm statistics
            that move along, see ``buffers_at``.
        path: points to be marked, the coordinates of checkpoints.
    """

    vectors: tuple[list[Tensor], ...]
    description: dict[str, Any]
    labels: tuple[str, ...]
    anchors: tuple[list[Tensor], ...] = ()
    path: tuple[Point, ...] = ()

    def buffers_at(self, own: Sequence[Tensor], point: Point) -> list[Tensor]:
        """Return the floating-point buffers at a point: a mean of the ``own`` ones and those of the anchors.

        The weights are (1 - x - y, x, y), negative ones set to zero: at the ends the statistics are those of the
        models there, and beyond them those of the nearest. Without anchors they are the own ones everywhere.
        """
        shares = point[: len(self.anchors)]
        weights = [max(weight, 0.0) for weight in (1 - sum(shares), *shares)]
        ends = [(w / sum(weights), buffers) for w, buffers in zip(weights, (own, *self.anchors), strict=True) if w > 0]
        return [
            torch.stack([weight * buffers[number] for weight, buffers in ends]).sum(dim=0) for number in range(len(own))
        ]


def floating_buffers(model: nn.Module) -> list[Tensor]:
    """Return the buffers that are not counters."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def random_directions(
    model: nn.Module, num: int = 2, *, seed: int = 0, norm: str = "filter", ignore_layers: str | None = "biasbn"
) -> Directions:
    """Draw normal directions, each a function of (seed, its number) alone, and normalise them.

    Args:
        model: gives shapes and norms.
        num: 1 or 2.
        seed: of the draws.
        norm: a name from the table above.
        ignore_layers: ``biasbn`` leaves parameters of at most one dimension (biases, batch norm) where they are.

    Raises:
        ValueError: for unknown names.
    """
    normalise = normalisation_named(norm)
    if ignore_layers not in (None, "biasbn"):
        raise ValueError(f"ignore_layers={ignore_layers}: unknown; accepted are biasbn and a blank")
    vectors = tuple(
        [
            torch.zeros_like(weight) if ignore_layers and weight.ndim <= 1 else normalise(drawn, weight.detach())
            for drawn, weight in zip(_drawn(model, seed, number), trainable(model), strict=True)
        ]
        for number in range(num)
    )
    description = {"kind": "random", "seed": seed, "norm": norm.lower(), "ignore_layers": ignore_layers}
    labels = tuple(f"random direction {number + 1} ({norm.lower()}-normalised)" for number in range(num))
    return Directions(vectors, description, labels)


def directions_between(
    model: nn.Module,
    others: dict[str, nn.Module],
    *,
    seed: int = 0,
    norm: str = "filter",
    ignore_layers: str | None = "biasbn",
) -> Directions:
    """Return the directions from ``model`` to one or two others, name -> module: they lie at (1, 0) and (0, 1).

    Beside a single other model, the second direction is a random one, of ``seed``, ``norm`` and ``ignore_layers``.
    Batch-norm statistics move along, so that each model has its own where it lies.

    Raises:
        ValueError: for another number of models, or one with parameters of other shapes.
    """
    if len(others) not in (1, 2):
        raise ValueError(f"{len(others)} other checkpoints: a line needs one, a plane one or two")
    vectors = [_difference(model, other, name) for name, other in others.items()]
    labels = [f"towards {name}" for name in others]
    description: dict[str, Any] = {"kind": "between", "others": [digest_of_model(other) for other in others.values()]}
    if len(others) == 1:
        beside = random_directions(model, 1, seed=seed, norm=norm, ignore_layers=ignore_layers)
        vectors, labels = [*vectors, beside.vectors[0]], [*labels, *beside.labels]
        description["beside"] = beside.description
    if any(all(not part.any() for part in vector) for vector in vectors[: len(others)]):
        raise ValueError("one of the other checkpoints has the same parameters: there is nothing between them")
    anchors = tuple(clones(floating_buffers(other)) for other in others.values())
    path = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))[: 1 + len(others)]
    return Directions(tuple(vectors), description, tuple(labels), anchors, path)


def principal_components(model: nn.Module, trajectory: Sequence[nn.Module]) -> Directions:
    """Return the first one or two principal components of a trajectory, through the parameters of ``model``.

    A component is scaled so that the trajectory reaches, from ``model``, a distance of at most 1 along it;
    ``path`` is the trajectory in these coordinates. The shares of the variance are in the labels.

    Raises:
        ValueError: fewer than two different points, or models of other shapes.
    """
    steps = [_difference(model, other, f"number {number + 1}") for number, other in enumerate(trajectory)]
    if len(steps) < 2:
        raise ValueError(f"{len(steps)} checkpoints make no trajectory: give two or more")
    # Of k checkpoints, the covariance's eigenvectors are combinations: a k x k matrix has them (Turk & Pentland, 1991).
    gram = sum(_centred(parts) @ _centred(parts).T for parts in zip(*steps, strict=True))
    assert isinstance(gram, Tensor)
    values, mixtures = (part.flip(-1) for part in torch.linalg.eigh(gram))
    rank = int((values > 1e-12 * values[0]).sum()) if values[0] > 0 else 0
    if rank == 0:
        raise ValueError("all the checkpoints have the same parameters: there is no trajectory")
    found = [_component(steps, mixtures[:, number]) for number in range(min(rank, 2))]
    shares = [float(value / values.clamp_min(0).sum()) for value in values]
    labels = [f"principal component {n + 1} ({shares[n]:.1%} of the variance)" for n in range(len(found))]
    along = [coordinates.tolist() for _, coordinates in found] + [[0.0] * len(steps)]
    return Directions(
        tuple(vector for vector, _ in found),
        {"kind": "pca", "checkpoints": [digest_of_model(other) for other in trajectory]},
        tuple(labels),
        path=tuple(zip(along[0], along[1], strict=True)),
    )


def _component(steps: Sequence[Sequence[Tensor]], mixture: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return a component, scaled, and the coordinates of the trajectory along it: float64 [k]."""
    unscaled = [torch.tensordot(mixture, _centred(parts), 1) for parts in zip(*steps, strict=True)]
    length = torch.stack([part.square().sum() for part in unscaled]).sum().sqrt()
    vector = [part / length for part in unscaled]
    products = [_rows(parts) @ part for parts, part in zip(zip(*steps, strict=True), vector, strict=True)]
    along = torch.stack(products).sum(dim=0)
    reach = along[along.abs().argmax()]  # signed: the farthest point lies at +1
    like = steps[0]
    return [(v * reach).view_as(part).to(part) for v, part in zip(vector, like, strict=True)], along / reach


def _rows(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.reshape(-1) for part in parts]).double()


def _centred(parts: Sequence[Tensor]) -> Tensor:
    rows = _rows(parts)
    return rows - rows.mean(dim=0)


def copy_with(model: nn.Module, weights: dict[str, Any]) -> nn.Module:
    """Return a copy of the module with other weights; ``ValueError`` where they are those of another model."""
    other = copy.deepcopy(model)
    load_weights(other, weights)
    return other


@torch.no_grad()
def _difference(model: nn.Module, other: nn.Module, name: str) -> list[Tensor]:
    here, there = trainable(model), trainable(other)
    if [p.shape for p in here] != [p.shape for p in there]:
        raise ValueError(f"checkpoint {name}: the parameters are those of another model")
    return [b.to(a) - a for a, b in zip(here, there, strict=True)]


def _drawn(model: nn.Module, seed: int, number: int) -> list[Tensor]:
    """Return standard normal numbers; drawn as float64 on the CPU, so that precision and device make no difference."""
    generator = torch.Generator().manual_seed(derive_seed(seed, number))
    parameters = trainable(model)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in parameters]


def _norms_of_filters(tensor: Tensor) -> Tensor:
    """Return the norm of each slice along the first dimension, in a shape that broadcasts."""
    if tensor.ndim <= 1:
        return tensor.abs()
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)


def _quotient(norms: Tensor, drawn: Tensor) -> Tensor:
    return torch.where(drawn > 0, norms / drawn, 0.0)


def _by_filter(drawn: Tensor, weight: Tensor) -> Tensor:
    return drawn * _quotient(_norms_of_filters(weight), _norms_of_filters(drawn))


def _by_layer(drawn: Tensor, weight: Tensor) -> Tensor:
    return drawn * _quotient(weight.norm(), drawn.norm())


NORMALISATIONS: dict[str, Normalisation] = {
    "filter": _by_filter,
    "layer": _by_layer,
    "weight": lambda drawn, weight: drawn * weight.abs(),
    "dfilter": lambda drawn, _: drawn * _quotient(torch.ones(()).to(drawn), _norms_of_filters(drawn)),
    "dlayer": lambda drawn, _: drawn * _quotient(torch.ones(()).to(drawn), drawn.norm()),
}


def normalisation_named(name: str) -> Normalisation:
    """Look a normalisation up, case-insensitively; ``ValueError`` lists the known ones."""
    if name.lower() not in NORMALISATIONS:
        raise ValueError(f"norm={name}: unknown; known: {', '.join(NORMALISATIONS)}")
    return NORMALISATIONS[name.lower()]
