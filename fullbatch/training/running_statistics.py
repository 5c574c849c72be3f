"""Running statistics of batch norm that several processes have moved, each from its own blocks.

A sub-batch with the statistics x moves them by r <- (1 - m) r + m x, so k of them together by r <- a r + c with
a = (1 - m)^k. Maps of consecutive blocks compose in order, so each process finds the c of its own, starting from r = 0,
and all together what one process would have found. Without a momentum r is the mean of all x so far: r <- (n r + k c)/
(n + k) after n others, where c is that of the k.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fullbatch.tensors import clones, copy_


class RunningStatistics:
    """The buffers of ``model``: running statistics, which compose, and others, which must not move.

    All lists of tensors are in the order of ``model.buffers()``. Tables have a row for each piece of a pass, float64.
    """

    def __init__(self, model: nn.Module) -> None:
        self.buffers = list(model.buffers())
        places = {id(buffer): place for place, buffer in enumerate(self.buffers)}
        self._norms: list[tuple[float | None, list[int]]] = []
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.num_batches_tracked is not None:
                own = (module.running_mean, module.running_var, module.num_batches_tracked)
                self._norms.append((module.momentum, [places[id(buffer)] for buffer in own]))
        composed = {place for _, own in self._norms for place in own}
        self._others = [place for place in range(len(self.buffers)) if place not in composed]
        self._names = [name for name, _ in model.named_buffers()]

    @torch.no_grad()
    def reset(self) -> None:
        """Set running statistics and counts to zero, where the map of a piece starts."""
        for _, places in self._norms:
            for place in places:
                self.buffers[place].zero_()

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
        rows = [self._cut(row) for row in table]
        result = clones(rows[0])
        for momentum, (mean, variance, count) in self._norms:
            for row in rows[1:]:
                kept = (
                    result[count] / (result[count] + row[count]) if momentum is None else (1 - momentum) ** row[count]
                )
                brought = 1 - kept if momentum is None else 1.0
                for place in (mean, variance):
                    moved_by = row[place] * brought
                    result[place] = torch.where(row[count] > 0, result[place] * kept + moved_by, result[place])
                result[count] = result[count] + row[count]
        copy_(self.buffers, result)

    def _cut(self, row: Tensor) -> list[Tensor]:
        pieces = row.split([buffer.numel() for buffer in self.buffers] + [1] * len(self._others))
        return [piece.view_as(buffer) for piece, buffer in zip(pieces, self.buffers, strict=False)]
