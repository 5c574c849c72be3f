"""Databases of surfaces: verified when reopened, leased only by living processes, never unpickled."""

import os
import struct
import subprocess
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import numpy as np
import pytest

from fullbatch.landscape import records
from fullbatch.landscape.records import manifest_of
from fullbatch.landscape.store import SurfaceStore
from fullbatch.landscape.surface import Value
from fullbatch.runtime.lmdb import DatabaseMismatchError, LMDBOptions

ARRAYS = {"x/weight": np.arange(6, dtype=np.float32).reshape(2, 3), "path": np.zeros((0, 2))}
CONTENTS = {"weights": "abc", "settings": {"model_eval": True, "norm": "filter"}}
POINTS = [(-1.0, 0.0), (0.0, 0.0), (1.0, 0.0)]
VALUE = Value(0.1, 0.5, float("nan"))
SMALL = LMDBOptions(map_size=1 << 21)


def opened(folder: Path, contents: dict[str, object] | None = None, **options: object) -> SurfaceStore:
    options = {"options": SMALL, **options}
    return SurfaceStore(folder, manifest_of(ARRAYS, **(contents or CONTENTS)), ARRAYS, **options)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with opened(tmp_path / "surface") as store:
        store.put(POINTS[0], VALUE)
    return tmp_path / "surface"


def change(folder: Path, table: bytes | None, key: bytes, content: bytes | None) -> None:
    """Change a record behind the program's back."""
    with lmdb.open(str(folder), max_dbs=3, map_size=1 << 21) as environment:
        database = environment.open_db(table) if table else None
        with environment.begin(write=True) as transaction:
            if content is None:
                assert transaction.delete(key, db=database)
            else:
                transaction.put(key, content, db=database)


def lease_of(folder: Path, point: tuple[float, float]) -> bytes | None:
    with lmdb.open(str(folder), max_dbs=3, map_size=1 << 21) as environment:
        table = environment.open_db(b"leases")
        with environment.begin() as transaction:
            return transaction.get(records.key_of(point), db=table)


def test_values_and_arrays_are_read_again(folder: Path) -> None:
    with opened(folder) as store:
        assert len(store) == 1
        (value,) = store.values(POINTS).values()
        assert value[:2] == VALUE[:2]
        assert np.isnan(value.full_loss)
        np.testing.assert_array_equal(store.arrays["x/weight"], ARRAYS["x/weight"])
        assert store.arrays["x/weight"].dtype == np.float32
        assert store.arrays["path"].shape == (0, 2)
    assert b"pickle" not in (folder / "data.mdb").read_bytes()


def test_the_first_value_stays(folder: Path) -> None:
    with opened(folder) as store:
        store.put(POINTS[0], Value(9.0, 9.0, 9.0))
        assert store.values(POINTS)[POINTS[0]].loss == VALUE.loss


def test_another_surface_is_refused_and_kept(folder: Path) -> None:
    for other, message in [
        ({"weights": "xyz"}, r"weights: abc there, xyz here"),
        ({"settings": {"model_eval": False, "norm": "filter"}}, r"settings\.model_eval: True there, False here"),
        ({"settings": {"model_eval": True, "norm": "layer"}}, r"settings\.norm: filter there, layer here"),
        ({"data": "new"}, r"data: None there, new here"),
    ]:
        with opened(folder, rebuild=True) as store:
            store.put(POINTS[0], VALUE)
        with pytest.raises(DatabaseMismatchError, match=message + r".*rebuild_existing_database=True replaces"):
            opened(folder, CONTENTS | other)
        with opened(folder) as store:
            assert len(store) == 1
        with opened(folder, CONTENTS | other, rebuild=True) as store:
            assert len(store) == 0


def spoil_manifest(folder: Path) -> None:
    change(folder, None, b"manifest", b"{")


def lose_manifest(folder: Path) -> None:
    change(folder, None, b"manifest", None)


def put_foreign_manifest(folder: Path) -> None:
    change(folder, None, b"manifest", b'{"format": 1}')


def spoil_array(folder: Path) -> None:
    change(folder, b"arrays", b"x/weight", b"\0" * 24)


def shorten_array(folder: Path) -> None:
    change(folder, b"arrays", b"x/weight", b"\0" * 20)


def lose_array(folder: Path) -> None:
    change(folder, b"arrays", b"x/weight", None)


def set_flag_of_page(folder: Path) -> None:
    """For LMDB, the page has been changed already in a transaction; it aborts the process when it is changed."""
    content = bytearray((folder / "data.mdb").read_bytes())
    for page in range(2, len(content) // 4096):
        content[4096 * page + 11] |= 128
    (folder / "data.mdb").write_bytes(content)


def truncate(folder: Path) -> None:
    path = folder / "data.mdb"
    path.write_bytes(path.read_bytes()[:-4096])


def write_letter(folder: Path) -> None:
    (folder / "data.mdb").write_bytes(b"a letter of more than twenty bytes")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_manifest, "not an intact database of this program"),
        (lose_manifest, "no manifest"),
        (put_foreign_manifest, "its manifest has format 1; this version reads format fullbatch landscape"),
        (spoil_array, "the array x/weight is damaged"),
        (shorten_array, "the array x/weight is damaged"),
        (lose_array, "the array x/weight is missing"),
        (truncate, "of .* bytes"),
        (set_flag_of_page, "its pages are damaged"),
        (write_letter, "no LMDB file"),
    ],
)
def test_damaged_databases_are_refused_and_kept(folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(folder)
    before = (folder / "data.mdb").read_bytes()

    def read() -> None:
        with opened(folder) as store:
            store.values(POINTS)

    with pytest.raises(OSError, match=message) as refusal:
        read()
    assert str(refusal.value).startswith(f"{folder}: not an intact database")
    assert "viz.rebuild_existing_database=True builds it anew" in str(refusal.value)
    assert (folder / "data.mdb").read_bytes() == before
    with opened(folder, rebuild=True) as store:
        assert len(store) == 0


def record_of(folder: Path, point: tuple[float, float]) -> bytes:
    with lmdb.open(str(folder), max_dbs=3, map_size=1 << 21) as environment:
        table = environment.open_db(b"points")
        with environment.begin() as transaction:
            return bytes(transaction.get(records.key_of(point), db=table))


def test_a_value_counts_for_its_own_point_and_surface(folder: Path, tmp_path: Path) -> None:
    """A record that is damaged, or under a key that is, is none; the point is computed again."""
    with opened(tmp_path / "other", {"weights": "xyz"}) as store:
        store.put(POINTS[0], VALUE)
    record = record_of(folder, POINTS[0])
    damaged = [bytes([*record[:at], record[at] ^ 1, *record[at + 1 :]]) for at in range(len(record))]
    for content in (*damaged, record[:-1], record[1:], record + b"\0", b"", record_of(tmp_path / "other", POINTS[0])):
        change(folder, b"points", records.key_of(POINTS[0]), content)
        with opened(folder) as store:
            assert store.values(POINTS) == {}
            assert store.claim(deque(POINTS[:1])) == POINTS[0]
            store.put(POINTS[0], VALUE)
            assert store.values(POINTS)[POINTS[0]][:2] == VALUE[:2]
    change(folder, b"points", records.key_of(POINTS[2]), record)
    with opened(folder) as store:
        assert store.values(POINTS).keys() == {POINTS[0]}


def test_values_of_earlier_versions_are_read(folder: Path) -> None:
    content = struct.pack("<3d", 0.25, 0.5, 0.75)
    change(folder, b"points", records.key_of(POINTS[1]), struct.pack("<I", zlib.crc32(content)) + content)
    with opened(folder) as store:
        assert store.values(POINTS)[POINTS[1]] == Value(0.25, 0.5, 0.75)


DAMAGED_LEASES = [
    *(b"", b"{", b"[]", b"7", b"\xff", b'{"machine": 1, "process": [], "token": 2, "expires": 3}'),
    *(other.encode() for other in (
        '{"machine": "elsewhere", "process": 1, "token": "t", "expires": 1e300}',
        '{"machine": "elsewhere", "process": 99999999999999999999, "token": "t", "expires": 1e10}',
        '{"machine": "elsewhere", "process": 1, "token": "t", "expires": "soon"}',
        '{"machine": "elsewhere", "process": 1, "token": "t", "expires": NaN}',
    )),
]  # fmt: skip


def test_a_damaged_lease_keeps_no_point(folder: Path) -> None:
    for lease in DAMAGED_LEASES:
        change(folder, b"leases", records.key_of(POINTS[1]), lease)
        with opened(folder) as store:
            assert store.claim(deque(POINTS[1:2])) == POINTS[1], lease
            store.release(POINTS[1])


def test_a_database_of_another_program_is_kept(tmp_path: Path) -> None:
    change(tmp_path / "other", None, b"key", b"value")
    before = (tmp_path / "other" / "data.mdb").read_bytes()
    with pytest.raises(OSError, match="no manifest"):
        opened(tmp_path / "other")
    assert (tmp_path / "other" / "data.mdb").read_bytes() == before


def test_a_file_in_its_place_is_replaced_when_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("notes")
    with pytest.raises(FileExistsError):
        opened(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "notes"
    with opened(tmp_path / "file", rebuild=True) as store:
        assert len(store) == 0


def test_an_empty_file_of_a_killed_process_is_used(tmp_path: Path) -> None:
    (tmp_path / "surface").mkdir()
    (tmp_path / "surface" / "data.mdb").touch()
    with opened(tmp_path / "surface") as store:
        assert len(store) == 0


def test_rebuilding_keeps_other_files(folder: Path) -> None:
    (folder / "notes.txt").write_text("notes")
    with opened(folder, rebuild=True) as store:
        assert len(store) == 0
    assert (folder / "notes.txt").read_text() == "notes"


def test_too_small_a_file_is_refused_before(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"viz\.map_size=2,097,152: the directions and 10,000 points take up to"):
        opened(tmp_path / "surface", num_points=10_000)
    assert not (tmp_path / "surface").exists()


def test_a_full_file_continues_with_a_larger_map_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fullbatch.landscape.store._SLACK", 0)
    with opened(folder, options=LMDBOptions(map_size=1 << 17)) as store:

        def fill() -> None:
            for number in range(10_000):
                store.put((0.5, float(number)), VALUE)

        with pytest.raises(OSError, match=r"all viz\.map_size=131,072 bytes are used; a larger number continues"):
            fill()
        count = len(store)
        assert count > 100
    with opened(folder) as store:
        store.put((0.5, 1e6), VALUE)
        assert len(store) == count + 1


@pytest.fixture
def store(folder: Path) -> Iterator[SurfaceStore]:
    with opened(folder) as store:
        yield store


def test_points_are_leased_once_and_computed_ones_never(store: SurfaceStore) -> None:
    pending = deque(POINTS)
    assert store.claim(pending) == POINTS[1]  # the first one is computed
    assert store.claim(deque(POINTS)) == POINTS[2]
    rest = deque(POINTS)
    assert store.claim(rest) is None
    assert list(rest) == POINTS[1:]  # others are at work there
    store.release(POINTS[2])
    assert store.claim(deque(POINTS)) == POINTS[2]
    store.put(POINTS[1], VALUE)
    store.put(POINTS[2], VALUE)
    assert store.claim(rest) is None
    assert not rest
    store.__exit__()
    assert lease_of(store.folder, POINTS[1]) is None


def other_owner(**changes: object) -> records.Owner:
    here = records.Owner.here()
    return records.Owner(**{**vars(here), "token": "other", **changes})  # type: ignore[arg-type]


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


OWNERS = {
    "alive here": (lambda: other_owner(process=os.getppid()), 60, False),
    "expired": (lambda: other_owner(process=os.getppid()), -0.01, True),
    "dead here": (lambda: other_owner(process=dead_process()), 60, True),
    "a process before with this number": (other_owner, 60, True),
    "elsewhere": (lambda: other_owner(machine="elsewhere", process=dead_process()), 60, False),
    "elsewhere, expired": (lambda: other_owner(machine="elsewhere"), -0.01, True),
}


@pytest.mark.parametrize("case", OWNERS)
def test_leases_end_with_their_owner_or_their_time(folder: Path, case: str) -> None:
    owner, seconds, free = OWNERS[case]
    lease = owner().lease(time.time() + seconds)
    change(folder, b"leases", records.key_of(POINTS[1]), lease)
    with opened(folder) as store:
        assert store.claim(deque(POINTS[:2])) == (POINTS[1] if free else None)
        if free:
            store.put(POINTS[1], VALUE)
        else:
            store.release(POINTS[1])  # not ours
    assert lease_of(folder, POINTS[1]) == (None if free else lease)


def test_a_lease_is_renewed_after_a_third_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("fullbatch.landscape.store.time.time", lambda: now)

    def expiry() -> float:
        with store._lmdb.begin() as transaction:
            content = transaction.get(records.key_of(POINTS[1]), db=store._tables[b"leases"])
        return float(records.json.loads(content)["expires"])

    with opened(folder, lease_seconds=30.0) as store:
        store.claim(deque(POINTS))
        assert expiry() == 1030
        now = 1009.0
        store.renew(POINTS[1])
        assert expiry() == 1030
        now = 1011.0
        store.renew(POINTS[1])
        assert expiry() == 1041


@pytest.mark.parametrize("error", [lmdb.MapResizedError, lmdb.ReadersFullError])
def test_changes_by_other_processes_are_adopted(
    store: SurfaceStore, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """One was given a larger map_size; others were killed while they read."""
    plain, errors = store._once, [error()]

    def once(work: Callable[[object], object], write: bool) -> object:
        if errors:
            raise errors.pop()
        return plain(work, write)

    monkeypatch.setattr(store, "_once", once)
    assert store.values(POINTS)[POINTS[0]].loss == VALUE.loss
    assert not errors
    monkeypatch.setattr(store, "_once", lambda *_: once(*_) if errors else plain(*_))
    errors.append(lmdb.DiskError("no space"))
    with pytest.raises(OSError, match=r"surface: cannot be used \(no space\)"):
        store.put(POINTS[1], VALUE)
