"""Prefetching on a CUDA device: the next block is copied and augmented while the current one is computed with."""

from collections.abc import Iterator

import torch

from fullbatch.typing import Block


def one_ahead(blocks: Iterator[Block], device: torch.device) -> Iterator[Block]:
    """Yield ``blocks``; on a CUDA device, make each one on a separate stream, one ahead of its use.

    At most one additional block lies on the device. On other devices, where nothing runs in parallel to Python, the
    blocks are yielded as they come.
    """
    if device.type != "cuda":
        yield from blocks
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # the images may still be in transit

    def make_next() -> Block | None:
        with torch.cuda.stream(stream):
            return next(blocks, None)

    block = make_next()
    while block is not None:
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in (block.inputs, block.labels):
            tensor.record_stream(current)  # keeps its memory until this stream is done with it
        following = make_next()
        yield block
        block = following
