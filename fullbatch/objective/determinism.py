"""Comparing two evaluations of an objective, and naming what makes them differ."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fullbatch.objective.arguments import accepts_data
from fullbatch.objective.blocks import checked
from fullbatch.objective.evaluations import Evaluation
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.randomness import preserved_rng
from fullbatch.tensors import preserved, trainable
from fullbatch.typing import Block


class ModuleCall(NamedTuple):
    """The inputs and the outputs of one call of a module."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@accepts_data
def determinism_culprit(objective: FullBatchObjective) -> str | None:
    """Evaluate loss and gradient twice; return None if they agree bitwise, else the cause of the difference.

    Causes are tested in this order: the data (number of samples, their order, their content: a shuffled or augmented
    set, or a last block that is dropped after shuffling); the first module whose outputs differ (dropout or other
    random numbers that do not depend on the seed of the block, state outside of the buffers); the last parameter whose
    gradient differs (kernels that sum in no fixed order). The model is unchanged afterwards. Takes a few evaluations.
    ``objective`` may be given as ``model, loss_fn, data``.
    """
    with preserved_rng(torch.device("cpu")):  # a DataLoader draws a seed
        culprit = _compare_data(objective)
    return culprit or _compare_evaluations(objective)


def _compare_data(objective: FullBatchObjective) -> str | None:
    first, second = (_fingerprints(objective.data) for _ in range(2))
    if len(first) != len(second):
        return f"the data: {len(first)} samples, then {len(second)}"
    if torch.equal(first, second):
        return None
    if torch.equal(_sorted(first), _sorted(second)):
        return "the data: the same samples in another order (shuffled in every iteration)"
    index = int((first != second).any(dim=1).nonzero()[0])
    return f"the data: other samples, from number {index} on (augmented in every iteration, or a tail is dropped)"


def _fingerprints(data: Iterable[Any]) -> Tensor:
    """Return two integers for each sample, int64 [N, 2]: sums of its bits, exact in any order of addition."""
    fingerprints = []
    for number, raw in enumerate(data):
        sums = []
        for values in checked(raw, number)[:2]:
            bits = values.detach().cpu().double().reshape(len(values), -1).view(torch.int64)
            sums.append((bits * (2 * torch.arange(bits.shape[1]) + 1)).sum(1))  # odd weights lose no bit
        fingerprints.append(torch.stack(sums, dim=1))
    return torch.cat(fingerprints)


def _sorted(rows: Tensor) -> Tensor:
    for column in range(rows.shape[1]):
        rows = rows[rows[:, column].argsort(stable=True)]
    return rows


def _compare_evaluations(objective: FullBatchObjective) -> str | None:
    first, second = objective.evaluate(), objective.evaluate()
    if not _differ([first.loss, *first.gradient], [second.loss, *second.gradient]):
        return None
    for block in objective.sub_batches():
        if (module := _compare_modules(objective, block)) is not None:
            return module
    return _compare_gradients(objective, first, second)


def _compare_modules(objective: FullBatchObjective, block: Block) -> str | None:
    passes = []
    for _ in range(2):
        with recorded(objective.model) as calls, preserved(list(objective.model.buffers())):
            loss = objective.sub_batch_objective.loss(block).loss
        passes.append([*calls, ModuleCall("the loss function", (), (loss,))])
    for one, other in zip_longest(*passes):
        if one is None or other is None or one.name != other.name:
            return "the model: another sequence of modules in every pass"
        if _differ(one.inputs, other.inputs):
            return f"the model: random numbers or state outside its modules, before {one.name}"
        if _differ(one.outputs, other.outputs):
            return f"the model: {one.name} returns other outputs for the same inputs"
    return None


def _compare_gradients(objective: FullBatchObjective, first: Evaluation, second: Evaluation) -> str:
    names = {parameter: name for name, parameter in objective.model.named_parameters()}
    pairs = zip(trainable(objective.model), first.gradient, second.gradient, strict=True)
    wrong = [names[parameter] for parameter, one, other in pairs if not torch.equal(one, other)]
    regularizer = " or the regularizer" if objective.regularized else ""
    return f"the gradient of {wrong[-1]}: kernels{regularizer} that sum in no fixed order"


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[ModuleCall]]:
    """Record inputs and outputs of the innermost modules, in the order in which they run."""
    calls: list[ModuleCall] = []
    names = {module: f"{name or 'model'} ({type(module).__name__})" for name, module in model.named_modules()}

    def record(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        calls.append(ModuleCall(names[module], _tensors(inputs), _tensors(outputs)))

    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    hooks = [module.register_forward_hook(record) for module in leaves]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(values: Any) -> tuple[Tensor, ...]:
    """Return copies of the tensors: later modules may work in place."""
    values = values if isinstance(values, tuple | list) else (values,)
    return tuple(value.detach().clone() for value in values if isinstance(value, Tensor))


def _differ(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    if len(ones) != len(others) or any(one.shape != other.shape for one, other in zip(ones, others, strict=True)):
        return True
    pairs = zip(ones, others, strict=True)
    return not all(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True) for one, other in pairs)
