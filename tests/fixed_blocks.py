"""The samples of ``cases``, block by block, the same in every step."""

from typing import Any

from cases import cut, samples
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.training.state import TrainState
from fullbatch.training.step import Step
from fullbatch.typing import Block

SIZES = [8, 8, 8, 8, 1]


class Fixed(list[Block]):
    """The test's samples, block by block, in the order of the set."""

    constant = True

    @classmethod
    def all(cls, constant: bool = True) -> "Fixed":
        blocks = cls([Block(*pair, key) for key, pair in enumerate(cut(*samples(), SIZES))])
        blocks.constant = constant
        return blocks

    def blocks(self, step: int, **_: bool) -> "Fixed":
        return self

    def __getitem__(self, part: slice) -> "Fixed":  # type: ignore[override]
        return Fixed(list.__getitem__(self, part))


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
    return Step(TrainState(model, optimizer), objective, Fixed.all(constant), **options)
