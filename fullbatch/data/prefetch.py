"""The next block on its way to a CUDA device, and augmented there, while the present one is computed with."""

from collections.abc import Iterator

import torch

from fullbatch.typing import Block


def one_ahead(blocks: Iterator[Block], device: torch.device) -> Iterator[Block]:
    """Yield the blocks, on a CUDA device each made on a stream of its own, one ahead of who computes with them.

    Values and order are those of ``blocks``. Elsewhere, where nothing runs beside the Python program, they pass as they
    come. At most one block more than without lies on the device.
    """
    if device.type != "cuda":
        yield from blocks
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # what blocks are made of may still be on its way

    def made() -> Block | None:
        with torch.cuda.stream(stream):
            return next(blocks, None)

    block = made()
    while block is not None:
        present = torch.cuda.current_stream(device)
        present.wait_stream(stream)
        for tensor in (block.inputs, block.labels):
            tensor.record_stream(present)  # its memory is not given away before this stream is done with it
        following = made()
        yield block
        block = following
