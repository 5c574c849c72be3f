"""Directions in the space of parameters: random and normalized, between models, along a trajectory.

A surface is a function of t(x, y) = t0 + x d_1 + y d_2, where t0 are the trainable parameters of a model. Random
directions are normalized as in Li et al., *Visualizing the Loss Landscape of Neural Nets* (NeurIPS 2018). With w a
parameter, d the part of the direction for it, and filters the slices w[i] along the first dimension (the entries of a
vector):

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

Normalization = Callable[[Tensor, Tensor], Tensor]
"""(drawn direction, weight) -> direction, for one parameter."""


@dataclass(frozen=True)
class Directions:
    """One or two directions.

    Attributes:
        vectors: each shaped like the trainable parameters.
        description: plain JSON that identifies them in a database.
        labels: of the axes, one for each direction.
        anchors: the floating-point buffers (batch-norm statistics) of the models at the ends of the first directions,
            see ``buffers_at``.
        path: points to mark, the coordinates of checkpoints.
    """

    vectors: tuple[list[Tensor], ...]
    description: dict[str, Any]
    labels: tuple[str, ...]
    anchors: tuple[list[Tensor], ...] = ()
    path: tuple[Point, ...] = ()

    def buffers_at(self, own: Sequence[Tensor], point: Point) -> list[Tensor]:
        """Return the floating-point buffers at a point: a weighted mean of ``own`` and of the anchors.

        The weights are (1 - x - y, x, y) with negative ones set to zero: at the ends the statistics are those of the
        models there, and beyond the ends those of the nearest model. Without anchors they are ``own`` everywhere.
        """
        coordinates = point[: len(self.anchors)]
        weights = [max(weight, 0.0) for weight in (1 - sum(coordinates), *coordinates)]
        ends = [(w / sum(weights), buffers) for w, buffers in zip(weights, (own, *self.anchors), strict=True) if w > 0]
        return [
            torch.stack([weight * buffers[number] for weight, buffers in ends]).sum(dim=0) for number in range(len(own))
        ]


def floating_buffers(model: nn.Module) -> list[Tensor]:
    """Return the floating-point buffers."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def random_directions(
    model: nn.Module, num: int = 2, *, seed: int = 0, norm: str = "filter", ignore_layers: str | None = "biasbn"
) -> Directions:
    """Draw normal directions, each a function of (seed, number), and normalize them.

    Args:
        model: its parameters have the shapes and norms.
        num: 1 or 2.
        seed: of the draws.
        norm: filter, layer, weight, dfilter or dlayer, in any case; see the table of this module.
        ignore_layers: ``biasbn`` sets the direction of parameters of at most one dimension (biases, batch norm) to 0.

    Raises:
        ValueError: for unknown names.
    """
    if norm.lower() not in NORMALIZATIONS:
        raise ValueError(f"norm={norm}: unknown; known: {', '.join(NORMALIZATIONS)}")
    if ignore_layers not in (None, "biasbn"):
        raise ValueError(f"ignore_layers={ignore_layers}: unknown; known: biasbn and a blank")
    normalize = NORMALIZATIONS[norm.lower()]
    vectors: list[list[Tensor]] = []
    for number in range(num):
        # float64 on the CPU: the same numbers for every precision and device
        generator = torch.Generator().manual_seed(derive_seed(seed, number))
        vectors.append([])
        for weight in trainable(model):
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
            ignored = ignore_layers and weight.ndim <= 1
            vectors[-1].append(torch.zeros_like(weight) if ignored else normalize(drawn, weight.detach()))
    description = {"kind": "random", "seed": seed, "norm": norm.lower(), "ignore_layers": ignore_layers}
    labels = tuple(f"random direction {number + 1} ({norm.lower()}-normalized)" for number in range(num))
    return Directions(tuple(vectors), description, labels)


def directions_between(
    model: nn.Module,
    others: dict[str, nn.Module],
    *,
    seed: int = 0,
    norm: str = "filter",
    ignore_layers: str | None = "biasbn",
) -> Directions:
    """Return the directions from ``model`` to one or two others, which are at (1, 0) and (0, 1).

    With one other model, the second direction is a random one of ``seed``, ``norm`` and ``ignore_layers``. Batch-norm
    statistics are interpolated, so that each model has its own.

    Args:
        model: the origin.
        others: name -> module.
        seed, norm, ignore_layers: as in ``random_directions``.

    Raises:
        ValueError: for another number of models, equal parameters or parameters of other shapes.
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
    for name, vector in zip(others, vectors, strict=False):
        if not any(part.any() for part in vector):
            raise ValueError(f"{name} has the same parameters as the model: there is nothing between them")
    if len(others) == 2 and all(map(torch.equal, *vectors)):
        raise ValueError(f"{' and '.join(others)} have the same parameters: a plane needs two different checkpoints")
    anchors = tuple(clones(floating_buffers(other)) for other in others.values())
    path = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))[: 1 + len(others)]
    return Directions(tuple(vectors), description, tuple(labels), anchors, path)


def principal_components(model: nn.Module, trajectory: Sequence[nn.Module]) -> Directions:
    """Return the first two principal components of a trajectory (one for a trajectory on a line).

    The origin is ``model``. A component is scaled so that the farthest point of the trajectory has the coordinate 1.
    ``path`` is the trajectory in these coordinates, and the labels contain the shares of the variance.

    Raises:
        ValueError: fewer than two different points, or parameters of other shapes.
    """
    steps = [_difference(model, other, f"number {number + 1}") for number, other in enumerate(trajectory)]
    if len(steps) < 2:
        raise ValueError(f"a trajectory needs at least two checkpoints, not {len(steps)}")
    # The eigenvectors of the covariance of k points follow from a k x k matrix (Turk & Pentland, 1991).
    gram = sum(_centered(parts) @ _centered(parts).T for parts in zip(*steps, strict=True))
    assert isinstance(gram, Tensor)
    values, mixtures = (part.flip(-1) for part in torch.linalg.eigh(gram))
    rank = int((values > 1e-12 * values[0]).sum()) if values[0] > 0 else 0
    if rank == 0:
        raise ValueError("all the checkpoints have the same parameters: there is no trajectory")
    components = [_component(steps, mixtures[:, number]) for number in range(min(rank, 2))]
    shares = [float(value / values.clamp_min(0).sum()) for value in values]
    labels = [f"principal component {n + 1} ({shares[n]:.1%} of the variance)" for n in range(len(components))]
    along = [coordinates.tolist() for _, coordinates in components] + [[0.0] * len(steps)]
    return Directions(
        tuple(vector for vector, _ in components),
        {"kind": "pca", "checkpoints": [digest_of_model(other) for other in trajectory]},
        tuple(labels),
        path=tuple(zip(along[0], along[1], strict=True)),
    )


def _component(steps: Sequence[Sequence[Tensor]], mixture: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return a scaled component and the coordinates of the trajectory along it, float64 [k]."""
    unscaled = [torch.tensordot(mixture, _centered(parts), 1) for parts in zip(*steps, strict=True)]
    length = torch.stack([part.square().sum() for part in unscaled]).sum().sqrt()
    vector = [part / length for part in unscaled]
    products = [_rows(parts) @ part for parts, part in zip(zip(*steps, strict=True), vector, strict=True)]
    along = torch.stack(products).sum(dim=0)
    reach = along[along.abs().argmax()]  # signed: the farthest point is at +1
    return [(v * reach).view_as(part).to(part) for v, part in zip(vector, steps[0], strict=True)], along / reach


def _rows(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.reshape(-1) for part in parts]).double()


def _centered(parts: Sequence[Tensor]) -> Tensor:
    rows = _rows(parts)
    return rows - rows.mean(dim=0)


def copy_with(model: nn.Module, weights: dict[str, Any]) -> nn.Module:
    """Return a copy of the module with other weights; raise ``ValueError`` if they are of another model."""
    other = copy.deepcopy(model)
    load_weights(other, weights)
    return other


@torch.no_grad()
def _difference(model: nn.Module, other: nn.Module, name: str) -> list[Tensor]:
    start, end = trainable(model), trainable(other)
    if [p.shape for p in start] != [p.shape for p in end]:
        raise ValueError(f"checkpoint {name}: the parameters are those of another model")
    return [b.to(a) - a for a, b in zip(start, end, strict=True)]


def _filter_norms(tensor: Tensor) -> Tensor:
    """Return the norm of each slice along the first dimension, in a shape that broadcasts."""
    if tensor.ndim <= 1:
        return tensor.abs()
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator, 0.0)


NORMALIZATIONS: dict[str, Normalization] = {
    "filter": lambda drawn, weight: drawn * _quotient(_filter_norms(weight), _filter_norms(drawn)),
    "layer": lambda drawn, weight: drawn * _quotient(weight.norm(), drawn.norm()),
    "weight": lambda drawn, weight: drawn * weight.abs(),
    "dfilter": lambda drawn, _: drawn * _quotient(torch.ones(()).to(drawn), _filter_norms(drawn)),
    "dlayer": lambda drawn, _: drawn * _quotient(torch.ones(()).to(drawn), drawn.norm()),
}
