"""Rows of steps in checkpoints, compressed.

Every checkpoint holds all rows, so that it is complete wherever it is copied, and so are its previous versions. All but
the newest rows are compressed in parts, each part once, and stored as one tensor of bytes. What grows with the number
of steps is the writing of about 75 bytes for each.
"""

import gzip
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PART = 64
"""The number of rows that are compressed together."""
_MAX_LENGTH = 10_000_000
"""Bytes of a part."""

KEY = "packed_rows"
"""Entry of a stored state with the older rows: for each part a line of JSON, column -> values, in gzip."""


class RowPacker:
    """Splits a growing list of rows into packed and plain ones; see ``__call__``."""

    def __init__(self) -> None:
        self._rows: Sequence[Mapping[str, float]] = ()
        self._parts: list[bytes] = []

    def __call__(self, rows: list[dict[str, float]]) -> dict[str, Any]:
        """Return entries of a stored state: ``rows``, the newest ones, and ``packed_rows`` once there are older ones.

        The last row is never packed and may still change.
        """
        if rows is not self._rows:
            self._rows, self._parts = rows, []
        for start in range(PART * len(self._parts), (len(rows) - 1) // PART * PART, PART):
            part = rows[start : start + PART]
            columns = {name: [row.get(name) for row in part] for name in dict.fromkeys(itertools.chain(*part))}
            self._parts.append(gzip.compress(f"{json.dumps(columns)}\n".encode(), mtime=0))
        newest = {"rows": rows[PART * len(self._parts) :]}
        if not self._parts:
            return newest
        return {**newest, KEY: torch.frombuffer(bytearray(b"".join(self._parts)), dtype=torch.uint8)}


def unpack_rows(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored state with all of its rows in the entry ``rows``; ``ValueError`` where they cannot be read."""
    packed, rows = state.get(KEY), list[Any]()
    if packed is None:
        return dict(state)
    try:
        if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
            raise ValueError("no bytes")
        with gzip.GzipFile(fileobj=io.BytesIO(packed.numpy().tobytes())) as file:
            while line := file.readline(_MAX_LENGTH):
                columns = json.loads(line)
                if columns["step"] != list(range(len(rows) + 1, len(rows) + 1 + PART)):  # bounds what is unpacked
                    raise ValueError(f"the rows after step {len(rows)} have other steps")
                for values in zip(*columns.values(), strict=True):
                    rows.append({name: v for name, v in zip(columns, values, strict=True) if v is not None})
    except Exception as error:  # gzip, zlib and json raise errors of many kinds
        raise ValueError(f"the entry state.{KEY} is damaged ({error})") from error
    return {key: part for key, part in state.items() if key != KEY} | {"rows": [*rows, *state["rows"]]}
