"""Gradient transformations and their composition, as in optax (DeepMind, 2020)."""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from fullbatch.tensors import global_norm
from fullbatch.typing import Tensors

Statistics = dict[str, Tensor]


class GradientTransform(Protocol):
    """A function that changes gradients in place."""

    def __call__(self, gradients: Tensors, parameters: Tensors) -> None:
        """Transform ``gradients``, of the shapes of ``parameters``, in place."""
        ...


def chain(transforms: Iterable[GradientTransform], gradients: Tensors, parameters: Tensors) -> Statistics:
    """Apply the transformations in order, in place.

    Returns the 2-norm before the first one as ``full_grad_norm`` and after the last one as ``update_norm``.
    """
    statistics = {"full_grad_norm": global_norm(gradients)}
    for transform in transforms:
        transform(gradients, parameters)
    statistics["update_norm"] = global_norm(gradients)
    return statistics
