"""Grids of points. Coordinates are exact: a finer grid contains those of a coarser one bitwise."""

import math
from dataclasses import dataclass
from fractions import Fraction

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """``num`` equally spaced coordinates from ``min`` to ``max``, both included.

    Raises:
        ValueError: ``min`` and ``max`` are not finite or not in order, or ``num`` does not fit to them.
    """

    min: float = -1.0
    max: float = 1.0
    num: int = 51

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min) and math.isfinite(self.max)):
            raise ValueError(f"min={self.min}, max={self.max}: should be finite")
        if self.num < 1:
            raise ValueError(f"num={self.num}: should be 1 or more")
        if self.min > self.max:
            raise ValueError(f"min={self.min:g} is larger than max={self.max:g}")
        if (self.min == self.max) != (self.num == 1):
            needs = "one point needs min=max, and min=max needs one point"
            raise ValueError(f"min={self.min:g}, max={self.max:g}, num={self.num}: {needs}")

    def values(self) -> list[float]:
        """Return the coordinates, each the double nearest to min + (max - min) k/(num - 1) of the decimal numbers."""
        if self.num == 1:
            return [self.min + 0.0]
        low, high = (Fraction(str(float(end))) for end in (self.min, self.max))
        return [float(low + (high - low) * Fraction(k, self.num - 1)) + 0.0 for k in range(self.num)]


POINT = Axis(0.0, 0.0, 1)
"""The axis of a line's other coordinate."""


@dataclass(frozen=True)
class Grid:
    """All (x, y) with x and y on their axes; a line if one axis is a single point."""

    x: Axis = Axis()
    y: Axis = POINT

    @property
    def shape(self) -> tuple[int, int]:
        """The number of points along x and y."""
        return self.x.num, self.y.num

    @property
    def is_plane(self) -> bool:
        """Whether both axes have more than one point."""
        return min(self.shape) > 1

    def points(self) -> list[Point]:
        """Return the points, y running fastest."""
        ys = self.y.values()
        return [(x, y) for x in self.x.values() for y in ys]
