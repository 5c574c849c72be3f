"""A slow surface for processes that fill it together and are killed."""

import time
from collections.abc import Iterator
from pathlib import Path

import cases
import torch
from torch import Tensor
from torch.nn import functional as F

from fullbatch.landscape.any_module import loss_landscape
from fullbatch.landscape.grid import Axis
from fullbatch.landscape.surface import Surface

AXES = {"x": Axis(-1, 1, 21), "y": Axis(-1, 1, 21)}


class Slow:
    """Blocks with a pause before each, so that most kills interrupt the computation of a point."""

    def __init__(self, pause: float) -> None:
        self.blocks, self.pause = cases.cut(*cases.samples(), cases.PARTITIONS["uneven"]), pause

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for block in self.blocks:
            time.sleep(self.pause)
            yield block


def fill(folder: Path | None = None, pause: float = 0.0) -> Surface:
    torch.set_num_threads(1)
    return loss_landscape(cases.build("tanh"), F.cross_entropy, Slow(pause), **AXES, weight_decay=0.1, folder=folder)


def numbers(folder: Path, num: int) -> list[list[float]]:
    """Return the values on a grid of num x num points."""
    torch.set_num_threads(1)
    axes, data = {"x": Axis(-1, 1, num), "y": Axis(-1, 1, num)}, cases.cut(*cases.samples(), [33])
    surface = loss_landscape(cases.build("tanh"), F.cross_entropy, data, **axes, folder=folder)
    return [array.reshape(-1).tolist() for array in surface.quantities().values()]
