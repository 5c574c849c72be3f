"""Running statistics of batch norm that are updated in pieces, by several processes or in several ranges of blocks.

A sub-batch with the statistics x updates them by r <- (1 - m) r + m x, so k of them together by r <- a r + c with
a = (1 - m)^k. Maps of consecutive sub-batches compose in order: each piece computes its own c, starting from r = 0, and
the composition is what one process would have computed in order. Without a momentum r is the mean of all x so far:
r <- (n r + k c)/(n + k) after n others, where c is that of the k.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fullbatch.tensors import copy_, zero_


class RunningStatistics:
    """The buffers of ``model``: running statistics, which compose, and others, which must not change during a pass.

    All lists of tensors are in the order of ``model.buffers()``. Tables have one row for each piece of a pass, float64.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = [
            module
            for module in model.modules()
            if isinstance(module, _BatchNorm) and module.training and module.num_batches_tracked is not None
        ]
        self.buffers = list(model.buffers())
        self._running = [x for norm in norms for x in (norm.running_mean, norm.running_var) if x is not None]
        self._counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        composing = {id(buffer) for buffer in (*self._running, *self._counters)}
        self._others = [index for index, buffer in enumerate(self.buffers) if id(buffer) not in composing]
        self._names = [name for name, _ in model.named_buffers()]
        self._momenta = torch.tensor(
            [math.nan if norm.momentum is None else norm.momentum for norm in norms], dtype=torch.float64
        ).to(self.buffers[0].device if self.buffers else "cpu")
        sizes = torch.tensor([2 * norm.num_features for norm in norms], dtype=torch.long)
        self._owners = torch.arange(len(norms)).repeat_interleave(sizes).to(self._momenta.device)
        ends = torch.tensor([buffer.numel() for buffer in self.buffers], dtype=torch.long).cumsum(0).tolist()
        starts = dict(zip(map(id, self.buffers), [0, *ends[:-1]], strict=bool(self.buffers)))
        columns = [torch.arange(value.numel()) + starts[id(value)] for value in self._running]
        self._running_columns = torch.cat([torch.zeros(0, dtype=torch.long), *columns])
        self._counter_columns = torch.tensor([starts[id(count)] for count in self._counters], dtype=torch.long)

    def reset(self) -> None:
        """Set running statistics and counters to zero, where the map of a piece starts."""
        zero_(self._running)
        zero_(self._counters)

    @torch.no_grad()
    def table(self, pieces: Sequence[tuple[int, Sequence[Tensor]]], num_rows: int, start: Sequence[Tensor]) -> Tensor:
        """Return a table [num_rows, entries + others] with the rows of some (row, buffers after the piece).

        Rows of other processes are zero: the sum of the processes' tables has all rows. The last columns are not zero
        where a buffer that does not compose has changed from ``start``.
        """
        width = sum(buffer.numel() for buffer in self.buffers) + len(self._others)
        table = torch.zeros(num_rows, width, dtype=torch.float64, device=self.buffers[0].device)
        for row, buffers in pieces:
            changed = [(buffers[index] != start[index]).any() for index in self._others]
            table[row] = torch.cat([entry.double().reshape(-1).to(table.device) for entry in (*buffers, *changed)])
        return table

    @torch.no_grad()
    def compose_(self, table: Tensor) -> None:
        """Set the buffers to the composition of the rows, in the order of their blocks; the first has true values.

        Raises ``ValueError`` where a buffer has changed that does not belong to batch norm.
        """
        changed = table[:, table.shape[1] - len(self._others) :].any(dim=0).tolist()
        if any(changed):
            name = self._names[self._others[changed.index(True)]]
            raise ValueError(f"model: the buffer {name} changes from block to block, so processes cannot share blocks")
        result, *rows = table.clone()
        values, counts = result[self._running_columns], result[self._counter_columns]
        for row in rows:
            self._append_piece_(values, counts, row[self._running_columns], row[self._counter_columns])
        result[self._running_columns], result[self._counter_columns] = values, counts
        pieces = result.split([buffer.numel() for buffer in self.buffers] + [1] * len(self._others))
        copy_(self.buffers, [piece.view_as(buffer) for piece, buffer in zip(pieces, self.buffers, strict=False)])

    def _append_piece_(self, values: Tensor, counts: Tensor, piece: Tensor, piece_counts: Tensor) -> None:
        """Update values and counts by a piece, which has brought them from zero to ``piece`` and ``piece_counts``."""
        is_mean, occurred = self._momenta.isnan(), piece_counts > 0
        kept = torch.where(is_mean, counts.double() / (counts + piece_counts), (1 - self._momenta) ** piece_counts)
        added = torch.where(is_mean, 1 - kept, 1.0)
        kept, added = torch.where(occurred, kept, 1.0), torch.where(occurred, added, 0.0)
        values.mul_(kept.to(values.dtype)[self._owners]).addcmul_(piece, added.to(values.dtype)[self._owners])
        counts.add_(piece_counts)
