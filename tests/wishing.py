"""Somebody who wants something of a run at a certain block."""

from fullbatch.runtime.interruption import Wish


class WishAt:
    """Has a wish at the ``block``-th block, counted over all passes from 1."""

    def __init__(self, block: int, wish: Wish = Wish.STOP) -> None:
        self.block, self.wish, self.blocks, self.fulfilled = block, wish, 0, False

    def noticed(self) -> bool:
        self.blocks += 1
        return self.blocks == self.block

    def agree(self) -> Wish:
        if self.fulfilled or self.blocks < self.block:
            return Wish.NONE
        self.fulfilled = True
        return self.wish
