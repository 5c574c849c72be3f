"""Grids: coordinates are exact, so that finer grids contain coarser ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullbatch.landscape.grid import POINT, Axis, Grid
from fullbatch.landscape.records import key_of

ENDS = st.decimals(-5, 5, places=2).map(float)


@given(ENDS, ENDS, st.integers(2, 60), st.integers(1, 4))
def test_a_refined_axis_contains_all_coordinates(low: float, high: float, num: int, factor: int) -> None:
    if low >= high:
        low, high = high - 1, low + 1
    coarse, fine = Axis(low, high, num), Axis(low, high, (num - 1) * factor + 1)
    assert coarse.values() == fine.values()[::factor]
    assert (coarse.values()[0], coarse.values()[-1]) == (low, high)
    steps = [b - a for a, b in zip(coarse.values(), coarse.values()[1:], strict=False)]
    assert steps == pytest.approx([(high - low) / (num - 1)] * (num - 1))


def test_grids_of_other_ranges_share_their_points() -> None:
    assert set(Axis(-0.1, 0.1, 3).values()) < set(Axis(-0.3, 0.3, 7).values())


def test_y_runs_fastest() -> None:
    grid = Grid(Axis(-1, 1, 3), Axis(0, 1, 2))
    assert grid.points() == [(x, y) for x in (-1.0, 0.0, 1.0) for y in (0.0, 1.0)]
    assert grid.is_plane
    assert not Grid(Axis(-1, 1, 3), POINT).is_plane
    assert key_of((-0.0, 1.0)) == key_of((0.0, 1.0)) != key_of((1.0, 0.0))


def test_wrong_axes_are_refused() -> None:
    table = [
        ((1.0, -1.0, 5), "min=1 is larger than max=-1"),
        ((0.0, 0.0, 5), "one point needs min=max, and min=max needs one point"),
        ((0.0, 1.0, 1), "one point needs min=max"),
        ((0.0, 1.0, 0), "num=0: should be 1 or more"),
        ((0.0, float("inf"), 3), "should be finite"),
    ]
    for axis, message in table:
        with pytest.raises(ValueError, match=message):
            Axis(*axis)
