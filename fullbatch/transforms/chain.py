"""Gradient transforms and their composition, in the sense of optax (DeepMind, 2020)."""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from fullbatch.tensors import global_norm
from fullbatch.typing import Tensors

Statistics = dict[str, Tensor]


class GradientTransform(Protocol):
    """Changes gradients in place; knows nothing of where they come from or what follows."""

    def __call__(self, gradients: Tensors, parameters: Tensors) -> None:
        """Change ``gradients``, of the shapes of ``parameters``, in place."""
        ...


def chain(transforms: Iterable[GradientTransform], gradients: Tensors, parameters: Tensors) -> Statistics:
    """Apply the transforms in order, in place.

    Returns the 2-norms read before the first stage (``full_grad_norm``) and after the last (``update_norm``).
    """
    statistics = {"full_grad_norm": global_norm(gradients)}
    for transform in transforms:
        transform(gradients, parameters)
    statistics["update_norm"] = global_norm(gradients)
    return statistics
