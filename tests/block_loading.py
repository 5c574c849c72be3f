"""Block loaders from flat options."""

from dataclasses import fields
from typing import Any

from fullbatch.data.images import ImageSet
from fullbatch.data.loader import BlockFormat, BlockLoader, ReadOptions


def block_loader(dataset: ImageSet, **options: Any) -> BlockLoader:
    """Return a ``BlockLoader``; options of ``BlockFormat`` and ``ReadOptions`` are sorted into these."""
    records = (
        kind(**{field.name: options.pop(field.name) for field in fields(kind) if field.name in options})
        for kind in (BlockFormat, ReadOptions)
    )
    block_format, reading = records
    return BlockLoader(dataset, format=block_format, reading=reading, **options)
