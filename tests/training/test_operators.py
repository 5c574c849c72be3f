"""Speed guarded by counts of operators, which no busy machine changes."""

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from small_training import loader
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fullbatch import build_model
from fullbatch.data.loader import BlockLoader
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.training.state import TrainState
from fullbatch.training.step import Step
from fullbatch.transforms.clipping import ClipByNorm

SIZE = 10  # samples of a block
WAITS = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.equal")
NO_WORK = ("aten.detach", "aten.empty_like", "aten.view", "aten.t", "aten.slice")
"""Operators that wait for the device, and those that start nothing on it."""


class Counted(TorchDispatchMode):
    """Counts the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func).rpartition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def counted(run: Callable[[], object]) -> Counter[str]:
    with Counted() as mode:
        run()
    return mode.counts


def network() -> nn.Module:
    return build_model("resnet20", channels=1, classes=10, pixels=8, width=4)


def images(num_blocks: int, **options: Any) -> BlockLoader:
    return loader(size=SIZE * num_blocks, batch_size=SIZE, dtype=torch.float32, augmentation=None, **options)


def our_step(num_blocks: int, **options: Any) -> Callable[[], object]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    regularizer = GradRegularizer(model, optimizer, F.cross_entropy, **options) if options else None
    data = images(num_blocks)
    objective = FullBatchObjective(model, F.cross_entropy, [], regularizer=regularizer)
    step = Step(TrainState(model, optimizer), objective, data, transforms=[ClipByNorm(1.0)])
    step(0, stochastic=False)  # tests the loss
    return lambda: step(0, stochastic=False)


def minimal_step(num_blocks: int) -> Callable[[], object]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    blocks = [
        (b.inputs, b.labels) for b in loader(size=SIZE * num_blocks, batch_size=SIZE, dtype=torch.float32).blocks(0)
    ]

    def step() -> None:
        optimizer.zero_grad()
        for inputs, labels in blocks:
            (F.cross_entropy(model(inputs), labels) / num_blocks).backward()
        optimizer.step()

    return step


def of_a_block(step: Callable[[int], Callable[[], object]]) -> Counter[str]:
    """What one block more adds."""
    few, many = counted(step(2)), counted(step(3))
    return Counter({name: number - few[name] for name, number in many.items() if name not in NO_WORK})


def test_a_block_takes_no_more_operators_than_one_of_a_minimal_loop() -> None:
    ours, minimal = of_a_block(our_step), of_a_block(minimal_step)
    for layer in ("aten.convolution", "aten.convolution_backward", "aten.native_batch_norm_backward"):
        assert ours[layer] == minimal[layer] > 0
    # the minimal loop adds the gradient of each parameter by itself; ours are one operator, and records a dozen
    assert ours.total() <= minimal.total()


def calls(run: Callable[[], object]) -> int:
    """How often Python calls something, or goes on with a generator, during ``run``."""
    number = 0

    def count(_: FrameType, event: str, __: object) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return number


def test_a_block_takes_not_many_more_calls_of_python_than_one_of_a_minimal_loop() -> None:
    few, many = our_step(2), our_step(4)
    minimal_few, minimal_many = minimal_step(2), minimal_step(4)
    for run in (few, many, minimal_few, minimal_many):
        run()  # what is imported or remembered once
    ours, minimal = calls(many) - calls(few), calls(minimal_many) - calls(minimal_few)
    assert ours < 5 * minimal  # 2.8; seeding every kind of device and listing all parameters in vain made it 12


def test_a_regularized_block_takes_those_of_two_or_three_and_a_few() -> None:
    plain = of_a_block(our_step).total()
    for implementation, times in (("forward-differences", 2), ("central-differences", 3)):
        total = of_a_block(lambda n, i=implementation: our_step(n, block_strength=0.5, implementation=i)).total()
        assert total <= times * plain + 20  # of all parameters at once, and scalars


@pytest.mark.parametrize("options", [{}, {"block_strength": 0.5}, {"block_strength": 0.5, "acc_strength": 0.1}])
def test_no_block_waits_for_the_device(options: dict[str, Any]) -> None:
    added = of_a_block(lambda n: our_step(n, **options))
    assert {name: added[name] for name in WAITS if added[name]} == {}


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"block_strength": 0.5}])
def test_no_evaluation_waits_for_the_gpu(options: dict[str, Any]) -> None:
    model = network().cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    regularizer = GradRegularizer(model, optimizer, F.cross_entropy, **options) if options else None
    data = images(3, device=torch.device("cuda"))
    objective = FullBatchObjective(model, F.cross_entropy, data.blocks(0), regularizer=regularizer)
    objective.evaluate()  # the first one may measure algorithms
    torch.cuda.set_sync_debug_mode("error")
    try:
        objective.evaluate()
    finally:
        torch.cuda.set_sync_debug_mode("default")
