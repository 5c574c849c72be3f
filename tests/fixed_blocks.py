"""Data that are the same in every step, block by block."""

from typing import Any

from cases import cut, samples
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.training.state import TrainState
from fullbatch.training.step import Step
from fullbatch.typing import Block

SIZES = [8, 8, 8, 8, 1]


class FixedBlocks(list[Block]):
    """Blocks in the order of the set, the same in every step."""

    constant = True

    @classmethod
    def cut(cls, inputs: Tensor, labels: Tensor, sizes: list[int], constant: bool = True) -> "FixedBlocks":
        blocks = cls(Block(*pair, key) for key, pair in enumerate(cut(inputs, labels, sizes)))
        blocks.constant = constant
        return blocks

    @classmethod
    def all(cls, constant: bool = True) -> "FixedBlocks":
        """Return the samples of ``cases``."""
        return cls.cut(*samples(), SIZES, constant)

    @property
    def sizes(self) -> list[int]:
        return [len(block.labels) for block in self]

    def blocks(self, step: int, **_: bool) -> "FixedBlocks":
        return self

    def __getitem__(self, part: slice) -> "FixedBlocks":  # type: ignore[override]
        return FixedBlocks(list.__getitem__(self, part))


def fixed_step(
    model: nn.Module,
    optimizer: Optimizer,
    objective: FullBatchObjective | None = None,
    *,
    constant: bool = True,
    **options: Any,
) -> Step:
    """Return a step on the test's samples, by default of the cross-entropy."""
    objective = objective or FullBatchObjective(model, F.cross_entropy, [])
    return Step(TrainState(model, optimizer), objective, FixedBlocks.all(constant), **options)
