"""Running statistics of batch norm that are moved in pieces: by several processes, or by several sub-batches at once.

A sub-batch with the statistics x moves them by r <- (1 - m) r + m x, so k of them together by r <- a r + c with
a = (1 - m)^k. Maps of consecutive sub-batches compose in order, so each piece finds its own c, starting from r = 0, and
all together what would have been found in order. Without a momentum r is the mean of all x so far: r <- (n r + k c)/
(n + k) after n others, where c is that of the k.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fullbatch.tensors import copy_, zero_


class MovingNorms:
    """The batch norms of ``model`` whose running statistics move in the mode it is in; nothing waits for the device.

    Of all of them as one, ``values`` [entries] are means and variances, ``counts`` [norms] how often they have moved.
    """

    def __init__(self, model: nn.Module) -> None:
        self.norms = [
            module
            for module in model.modules()
            if isinstance(module, _BatchNorm) and module.training and module.num_batches_tracked is not None
        ]
        sizes = torch.tensor([2 * norm.num_features for norm in self.norms], dtype=torch.long)
        momenta = [math.nan if norm.momentum is None else norm.momentum for norm in self.norms]
        values = self.values[0] if self.norms else torch.zeros(())
        self._owners = torch.arange(len(sizes)).repeat_interleave(sizes).to(values.device)
        self._momenta = torch.tensor(momenta, dtype=torch.float64).to(values.device)

    @property
    def values(self) -> list[Tensor]:
        """Means and variances."""
        return [some for norm in self.norms for some in (norm.running_mean, norm.running_var) if some is not None]

    @property
    def counts(self) -> list[Tensor]:
        """Numbers of moves."""
        return [norm.num_batches_tracked for norm in self.norms if norm.num_batches_tracked is not None]

    def reset(self) -> None:
        """Set values and counts to zero, where the map of a piece starts."""
        zero_(self.values)
        zero_(self.counts)

    @torch.no_grad()
    def gathered(self) -> tuple[Tensor, Tensor]:
        """Return copies of ``values`` and ``counts``."""
        return torch.cat(self.values), torch.stack(self.counts)

    @torch.no_grad()
    def scatter(self, values: Tensor, counts: Tensor) -> None:
        """Give the norms what ``gathered`` has returned, or what it has become."""
        copy_(self.values, values.split([value.numel() for value in self.values]))
        copy_(self.counts, counts.unbind())

    @torch.no_grad()
    def move_(self, values: Tensor, counts: Tensor, moved: Tensor, times: Tensor) -> None:
        """Let a piece, which has brought values and counts from zero to ``moved`` and ``times``, move others."""
        averaged, some = self._momenta.isnan(), times > 0
        kept = torch.where(averaged, counts.double() / (counts + times), (1 - self._momenta) ** times)
        brought = torch.where(averaged, 1 - kept, 1.0)
        kept, brought = torch.where(some, kept, 1.0), torch.where(some, brought, 0.0)
        values.mul_(kept.to(values.dtype)[self._owners]).addcmul_(moved, brought.to(values.dtype)[self._owners])
        counts.add_(times)


class RunningStatistics:
    """The buffers of ``model``: running statistics, which compose, and others, which must not move.

    All lists of tensors are in the order of ``model.buffers()``. Tables have a row for each piece of a pass, float64.
    """

    def __init__(self, model: nn.Module) -> None:
        self.norms = MovingNorms(model)
        self.buffers = list(model.buffers())
        self._others, self._names = other_buffers(model, self.norms), [name for name, _ in model.named_buffers()]
        begins = dict(zip(map(id, self.buffers), _begins(self.buffers), strict=True))
        columns = [torch.arange(value.numel()) + begins[id(value)] for value in self.norms.values]
        self._values = torch.cat([torch.zeros(0, dtype=torch.long), *columns])
        self._counts = torch.tensor([begins[id(count)] for count in self.norms.counts], dtype=torch.long)

    def reset(self) -> None:
        """Set running statistics and counts to zero, where the map of a piece starts."""
        self.norms.reset()

    @torch.no_grad()
    def table(self, pieces: Sequence[tuple[int, Sequence[Tensor]]], num_rows: int, start: Sequence[Tensor]) -> Tensor:
        """Return a table [num_rows, entries + others] with the rows of some (row, buffers after the piece).

        Rows of other processes are zero: the sum of the processes' tables has all. Its last columns are not zero where
        a buffer that does not compose has moved from ``start``.
        """
        width = sum(buffer.numel() for buffer in self.buffers) + len(self._others)
        table = torch.zeros(num_rows, width, dtype=torch.float64, device=self.buffers[0].device)
        for row, buffers in pieces:
            moved = [(buffers[place] != start[place]).any() for place in self._others]
            table[row] = torch.cat([entry.double().reshape(-1).to(table.device) for entry in (*buffers, *moved)])
        return table

    @torch.no_grad()
    def compose_(self, table: Tensor) -> None:
        """Set the buffers to what the rows, in the order of their blocks, come to; the first began at true ones.

        Raises ``ValueError`` where a buffer has moved that is none of batch norm's.
        """
        moved = table[:, table.shape[1] - len(self._others) :].any(dim=0).tolist()
        if any(moved):
            name = self._names[self._others[moved.index(True)]]
            raise ValueError(f"model: the buffer {name} moves from block to block; several processes cannot share that")
        result, *rows = table.clone()
        values, counts = result[self._values], result[self._counts]
        for row in rows:
            self.norms.move_(values, counts, row[self._values], row[self._counts])
        result[self._values], result[self._counts] = values, counts
        pieces = result.split([buffer.numel() for buffer in self.buffers] + [1] * len(self._others))
        copy_(self.buffers, [piece.view_as(buffer) for piece, buffer in zip(pieces, self.buffers, strict=False)])


def other_buffers(model: nn.Module, norms: MovingNorms) -> list[int]:
    """Return which of ``model.buffers()`` are none of the ``norms``."""
    own = {id(buffer) for buffer in (*norms.values, *norms.counts)}
    return [place for place, buffer in enumerate(model.buffers()) if id(buffer) not in own]


def _begins(tensors: Sequence[Tensor]) -> list[int]:
    ends = torch.tensor([tensor.numel() for tensor in tensors]).cumsum(0)
    return [0, *ends.tolist()[:-1]] if tensors else []
