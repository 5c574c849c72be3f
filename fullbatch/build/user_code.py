"""The user's losses, gradient transformations and probes, checked where they are called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fullbatch.analysis.probes import Observation
from fullbatch.runtime.imports import describe_error, import_object
from fullbatch.tensors import clones, copy_
from fullbatch.training.state import Row
from fullbatch.training.tables import STEP_COLUMNS
from fullbatch.typing import Tensors


@dataclass(frozen=True)
class UserLoss:
    """The losses of the samples by a function of the user.

    Args:
        key: the setting, for messages.
        function: (outputs [B, ...], labels [B, ...]) -> losses [B].
    """

    key: str
    function: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the losses [B]; ``ValueError`` where the function fails or returns something else."""
        try:
            losses = self.function(outputs, labels)
        except Exception as error:
            raise ValueError(f"{self.key} failed: {describe_error(error)}") from error
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        if shape != (len(labels),):
            hint = "; in a loss of torch.nn.functional, use reduction='none'" if shape == () else ""
            raise ValueError(f"{self.key} returned {shape}, expected a tensor of {len(labels)} losses [B]{hint}")
        if not losses.is_floating_point():
            raise ValueError(f"{self.key} returned losses of {losses.dtype}, expected floating-point numbers")
        return losses


@dataclass(frozen=True)
class UserTransform:
    """A gradient transformation of the user.

    Args:
        key: the setting, for messages.
        function: (gradients, parameters) -> new gradients, lists of tensors in the order of the parameters.
    """

    key: str
    function: Callable[[list[Tensor], list[Tensor]], Sequence[Tensor]]

    def __call__(self, gradients: Tensors, parameters: Tensors) -> None:
        """Replace the gradients in place; ``ValueError`` where the function returns something else."""
        before = [p._version for p in parameters]
        try:
            result = self.function(list(gradients), [p.detach() for p in parameters])
        except Exception as error:
            raise ValueError(f"{self.key} failed: {describe_error(error)}") from error
        expected = f"expected the list of the {len(gradients)} new gradients"
        if not isinstance(result, list | tuple) or not all(isinstance(entry, Tensor) for entry in result):
            raise ValueError(f"{self.key} returned {type(result).__name__}, {expected}")
        shapes = [tuple(entry.shape) for entry in result]
        if shapes != [tuple(gradient.shape) for gradient in gradients]:
            raise ValueError(f"{self.key} returned tensors of other shapes or another number of them, {expected}")
        if [p._version for p in parameters] != before:
            raise ValueError(f"{self.key} changed the parameters, {expected}")
        copy_(gradients, [entry.detach().clone() for entry in result])  # they may share memory with the old ones


@dataclass
class UserProbe:
    """A probe of the user.

    Args:
        key: the setting, for messages.
        function: (observation) -> numbers by name.
    """

    key: str
    function: Callable[[Observation], Mapping[str, float]]
    columns: dict[str, str] = field(default_factory=dict)

    def __call__(self, observation: Observation) -> Row:
        """Return the numbers; ``ValueError`` where the function fails, changes the model or returns something else."""
        tensors = [*observation.model.parameters(), *observation.model.buffers()]
        saved = clones(tensors)
        try:
            result = self.function(observation)
        except Exception as error:
            raise ValueError(f"{self.key} failed: {describe_error(error)}") from error
        finally:
            changed = not all(map(torch.equal, tensors, saved))
            with torch.no_grad():
                copy_(tensors, saved)
        if changed:
            raise ValueError(f"{self.key} changed the model; a probe only observes")
        if not isinstance(result, Mapping):
            raise ValueError(f"{self.key} returned {type(result).__name__}, expected a dictionary of numbers")
        if taken := result.keys() & set(STEP_COLUMNS):
            raise ValueError(f"{self.key} returned {min(taken)}, which is another column; choose other names")
        row = {str(name): _number(self.key, name, value) for name, value in result.items()}
        self.columns.update(dict.fromkeys(row, f"measured by {self.key}"))
        return row


def build_transforms(targets: Sequence[str]) -> list[UserTransform]:
    """Build the gradient transformations of the user."""
    return [UserTransform(f"hyp.transforms={target}", user_function("hyp.transforms", target)) for target in targets]


def build_probes(targets: Sequence[str]) -> list[UserProbe]:
    """Build the probes of the user."""
    return [UserProbe(f"analysis.probes={target}", user_function("analysis.probes", target)) for target in targets]


def user_function(key: str, target: str) -> Callable[..., Any]:
    """Import a function of the user."""
    function: Any = import_object(key, target)
    if not callable(function):
        raise ValueError(f"{key}={target}: not a callable but {type(function).__name__}")
    return function


def _number(key: str, name: object, value: Any) -> float:
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{key} returned {name}={value!r}, expected a number") from None
