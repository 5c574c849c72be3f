"""Packed rows: each compressed once, and the same afterwards."""

import copy
import gzip
import json
import math
from itertools import chain

import pytest
import torch

from fullbatch.models.packed_rows import KEY, PART, RowPacker, unpack_rows


def row(step: int) -> dict[str, float]:
    values = {"train_loss": 1 / step, "valid_loss": math.inf, "evaluations": 2, "tiny": 5e-324, "third": 0.1 + 0.2}
    return {"step": step, **dict(list(values.items())[: step % 6])}


@pytest.mark.parametrize("num", [0, 1, PART, PART + 1, 5 * PART + 3])
def test_rows_come_back_with_their_types_and_the_order_of_columns(num: int) -> None:
    rows = [row(step) for step in range(1, num + 1)]
    stored = RowPacker()(rows)
    assert (KEY in stored) == (num > PART)
    assert len(stored["rows"]) <= PART
    unpacked = unpack_rows({**stored, "other": 1})
    assert unpacked == {"rows": rows, "other": 1}
    assert json.dumps(unpacked["rows"], sort_keys=True) == json.dumps(rows, sort_keys=True)
    assert list(dict.fromkeys(chain(*unpacked["rows"]))) == list(dict.fromkeys(chain(*rows)))


def test_each_row_is_compressed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compress, sizes = gzip.compress, []
    monkeypatch.setattr(
        gzip, "compress", lambda data, **kw: (sizes.append(len(json.loads(data)["step"])), compress(data, **kw))[1]
    )
    packer, rows = RowPacker(), []
    for step in range(1, 4 * PART + 2):
        rows.append(row(step))
        stored = packer(rows)
        assert 0 < len(stored["rows"]) <= PART
    assert sizes == [PART] * 4
    other = [row(step) for step in range(1, PART + 2)]
    assert unpack_rows(packer(other))["rows"] == other


def test_the_last_row_may_change_and_stored_states_do_not() -> None:
    packer, rows = RowPacker(), [row(step) for step in range(1, PART + 1)]
    first = packer(rows)
    before = copy.deepcopy(first)
    rows[-1]["valid_acc"] = 0.5
    rows.append(row(PART + 1))
    second = packer(rows)
    assert unpack_rows(second)["rows"] == rows
    assert first.keys() == before.keys()
    assert torch.equal(packer(rows)[KEY], second[KEY])


@pytest.mark.parametrize(
    "packed",
    [
        3,
        torch.zeros(10, dtype=torch.uint8),
        torch.frombuffer(bytearray(gzip.compress(b"[]\n")), dtype=torch.uint8),
        torch.frombuffer(bytearray(gzip.compress(b'{"step": [2, 3]}\n' * 10**6)), dtype=torch.uint8),
        torch.frombuffer(bytearray(gzip.compress(b'{"step": 1}\n')), dtype=torch.uint8),
        torch.frombuffer(bytearray(gzip.compress(bytes(10**6))), dtype=torch.uint8),
        RowPacker()([{"step": step} for step in range(1, PART + 2)])[KEY][:-3],
    ],
)
def test_what_is_no_packed_rows_is_refused(packed: object) -> None:
    with pytest.raises(ValueError, match=r"^the entry state\.packed_rows is damaged \(.*\)$"):
        unpack_rows({"rows": [], KEY: packed})
