"""Surfaces filled by one process or several, interrupted or killed, have the same values."""

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cases
import landscape_filling
import lmdb
import numpy as np
import pytest
from torch.nn import functional as F

from fullbatch.landscape import filling
from fullbatch.landscape.any_module import loss_landscape
from fullbatch.landscape.directions import random_directions
from fullbatch.landscape.grid import Axis, Point
from fullbatch.landscape.store import SurfaceStore
from fullbatch.landscape.surface import PointEvaluator, Surface, Value
from fullbatch.runtime.lmdb import DatabaseMismatchError

MODEL, DATA = cases.build("tanh"), cases.cut(*cases.samples(), [20, 13])


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """Return the list of the evaluated points."""
    points: list[Point] = []
    plain = PointEvaluator.__call__

    def evaluate(self: PointEvaluator, point: Point, *beat: Callable[[], None]) -> Value:
        points.append(point)
        return plain(self, point, *beat)

    monkeypatch.setattr(PointEvaluator, "__call__", evaluate)
    return points


def line(folder: Path | None, num: int = 5, **options: Any) -> Surface:
    return loss_landscape(MODEL, F.cross_entropy, DATA, x=Axis(-1, 1, num), folder=folder, **options)


def test_stored_values_are_those_of_a_surface_without_a_database(tmp_path: Path) -> None:
    stored, plain = line(tmp_path / "s"), line(None)
    for name, array in plain.quantities().items():
        np.testing.assert_array_equal(stored.quantities()[name], array)
    assert stored.labels == plain.labels


def test_a_finer_grid_and_a_plane_compute_the_new_points_only(tmp_path: Path, computed: list[Point]) -> None:
    line(tmp_path / "s", 5)
    assert len(computed) == 5
    line(tmp_path / "s", 5)
    assert len(computed) == 5
    fine = line(tmp_path / "s", 9)
    assert sorted(x for x, _ in computed[5:]) == [-0.75, -0.25, 0.25, 0.75]
    plane = line(tmp_path / "s", 9, y=Axis(-1, 1, 3))
    assert len(computed) == 27
    np.testing.assert_array_equal(plane.loss[:, 1:2], fine.loss)


@pytest.mark.slow
def test_after_an_interruption_it_continues(tmp_path: Path, computed: list[Point]) -> None:
    def stopped(store: Any, grid: Any, evaluate: Any) -> Surface:
        return filling.fill(store, grid, evaluate, lambda: len(computed) == 2)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fullbatch.landscape.any_module.fill", stopped)
        partial = line(tmp_path / "s")
    assert np.isfinite(partial.loss).sum() == 2
    whole = line(tmp_path / "s")
    assert len(computed) == len(set(computed)) == 5
    np.testing.assert_array_equal(whole.loss, line(None).loss)


def test_a_point_that_fails_is_released(tmp_path: Path) -> None:
    class Broken:
        def __iter__(self) -> Iterator[Any]:
            yield DATA[0]
            if broken:
                raise OSError("an image is missing")
            yield DATA[1]

    def compute() -> Surface:
        return loss_landscape(MODEL, F.cross_entropy, Broken(), x=Axis(-1, 1, 2), folder=tmp_path / "s")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fullbatch.landscape.any_module.digest_of_data", lambda _: "same")
        broken = True
        with pytest.raises(OSError, match="an image is missing"):
            compute()
        with lmdb.open(str(tmp_path / "s"), max_dbs=3) as environment:
            leases = environment.open_db(b"leases")
            with environment.begin() as transaction:
                assert transaction.stat(leases)["entries"] == 0
        broken = False
        np.testing.assert_array_equal(compute().loss, line(None, 2).loss)


def spoil(folder: Path, number: int) -> None:
    """Change the record of a point behind the program's back."""
    with lmdb.open(str(folder), max_dbs=3) as environment:
        points = environment.open_db(b"points")
        with environment.begin(write=True) as transaction:
            key, record = list(transaction.cursor(db=points))[number]
            transaction.put(key, record[:-1] + bytes([record[-1] ^ 64]), db=points)


def test_a_damaged_point_is_computed_again(tmp_path: Path, computed: list[Point]) -> None:
    before = line(tmp_path / "s")
    spoil(tmp_path / "s", 1)
    again = line(tmp_path / "s")
    assert len(computed) == 6
    np.testing.assert_array_equal(again.loss, before.loss)


def test_a_point_that_cannot_be_stored_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no value of the model that is not finite."""
    store = SurfaceStore.put

    def lose(self: SurfaceStore, point: Point, value: Value) -> None:
        if point == (0.5, 0.0):
            self.release(point)
        else:
            store(self, point, value)

    monkeypatch.setattr(SurfaceStore, "put", lose)
    with pytest.raises(OSError, match=r"s: the point \(0\.5, 0\.0\) was stored and cannot be read again \(1 in all\)"):
        line(tmp_path / "s")


@pytest.mark.soak
def test_flipped_bits_are_refused_or_change_no_number(tmp_path: Path) -> None:
    """In processes of their own, because LMDB could end them."""
    right, rng, outcomes = landscape_filling.numbers(tmp_path / "whole", 5), random.Random(0), Counter[str]()
    landscape_filling.numbers(tmp_path / "part", 3)
    contents = [(tmp_path / name / "data.mdb").read_bytes() for name in ("whole", "part")]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for number in range(200):
            content = bytearray(contents[number % 2])
            used = [at for at in range(0, len(content), 8) if any(content[at : at + 8])]
            bit = 8 * rng.choice(used) + rng.randrange(64)
            content[bit // 8] ^= 1 << bit % 8
            folder = tmp_path / f"flipped_{number}"
            folder.mkdir()
            (folder / "data.mdb").write_bytes(content)
            try:
                assert pool.submit(landscape_filling.numbers, folder, 5).result() == right, f"bit {bit}"
                outcomes["right"] += 1
            except (ValueError, OSError) as error:
                assert str(folder) in str(error)  # noqa: PT017
                outcomes["refused"] += 1
    assert min(outcomes["right"], outcomes["refused"]) > 5


def test_another_surface_is_refused(tmp_path: Path) -> None:
    line(tmp_path / "s", 3)
    table: list[dict[str, Any]] = [
        {"weight_decay": 0.1},
        {"model_eval": False},
        {"sub_batch": 4},
        {"directions": random_directions(MODEL, seed=1)},
        {"directions": random_directions(MODEL, norm="layer")},
        {"settings": {"loss": "another"}},
    ]
    for changes in table:
        with pytest.raises(DatabaseMismatchError, match="holds another surface"):
            line(tmp_path / "s", 3, **changes)


def test_other_data_and_another_model_are_refused(tmp_path: Path) -> None:
    line(tmp_path / "s", 3)
    inputs, labels = cases.samples(seed=2)
    for model, data in ((MODEL, [(inputs, labels)]), (cases.build("tanh", 1), DATA)):
        with pytest.raises(DatabaseMismatchError, match=r"(data|weights): \w+ there, \w+ here"):
            loss_landscape(model, F.cross_entropy, data, x=Axis(-1, 1, 3), folder=tmp_path / "s")


def test_the_directions_are_those_of_the_database(tmp_path: Path) -> None:
    """Drawn on another machine they may differ in the last bit; here they differ more."""
    line(tmp_path / "s", 3)
    directions = random_directions(MODEL)
    for parts in directions.vectors:
        for part in parts:
            part.mul_(2)
    finer = line(tmp_path / "s", 5, directions=directions)
    np.testing.assert_array_equal(finer.loss, line(None, 5).loss)


@pytest.mark.slow
@pytest.mark.distributed
def test_four_processes_fill_a_grid_while_they_are_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["landscape_filling"])
    folder, rng, total = tmp_path / "surface", random.Random(0), 21 * 21

    def start() -> Any:
        process = context.Process(target=landscape_filling.fill, args=(folder, 0.002))
        process.start()
        return process

    running, kills, deadline = [start() for _ in range(4)], 0, time.monotonic() + 300
    while kills < 6 and time.monotonic() < deadline:
        time.sleep(rng.uniform(0.05, 0.5))
        victim = running.pop(rng.randrange(len(running)))
        if victim.is_alive():
            kills += 1
            victim.kill()
        victim.join()
        running.append(start())
    for process in running:
        process.join(timeout=300)
        assert process.exitcode == 0
    assert kills == 6
    filled = landscape_filling.fill(folder)  # computes no further points
    single = landscape_filling.fill()
    assert filled.loss.size == total
    for name, array in single.quantities().items():
        np.testing.assert_array_equal(filled.quantities()[name], array)
    with lmdb.open(str(folder), max_dbs=3) as environment:
        points, leases = environment.open_db(b"points"), environment.open_db(b"leases")
        with environment.begin() as transaction:
            assert transaction.stat(points)["entries"] == total
            assert transaction.stat(leases)["entries"] == 0
