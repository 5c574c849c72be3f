"""The strong Wolfe line search: bracket, then zoom by cubic interpolation (Nocedal & Wright, 2006, section 3.5)."""

import math
from typing import Any

from fullbatch.optim.line_search import Line, LinePoint, LineSearch


class Wolfe(LineSearch):
    """Finds a with phi(a) <= phi(0) + c1 a phi'(0), up to rounding, and |phi'(a)| <= c2 |phi'(0)|.

    1. ``search``: from a = 1, takes longer steps up to ``alpha_max`` until an interval contains such points.
    2. ``_zoom``: tries the minimizer of the cubic through the ends of the interval (of the parabola where the slope at
       one end is unknown), kept away from both ends. It becomes an end of the next, smaller interval.

    The first trial, which is accepted most of the time, computes its slope, too; a later one only where its loss is
    low enough, so that the others need forward passes only.

    Args:
        c1: sufficient decrease.
        c2: curvature condition.
        alpha_max: largest a.
        max_iter: number of trials in all.
    """

    def __init__(self, c1: float = 1e-4, c2: float = 0.9, alpha_max: float = 10.0, max_iter: int = 10) -> None:
        self.c1, self.c2, self.alpha_max, self.max_iter = c1, c2, alpha_max, max_iter

    def search(self, line: Line, memory: dict[str, Any]) -> LinePoint | None:
        """Bracket, then zoom. Where phi still falls steeply at ``alpha_max``, that point is the fallback."""
        before, trial = line.origin, line.value_and_slope(min(1.0, self.alpha_max))
        while not self._accepts(line, trial):
            if self._is_high(line, trial, before):
                return self._zoom(line, before, trial)
            assert trial.slope is not None
            if trial.slope >= 0:
                return self._zoom(line, trial, before)
            if trial.a >= self.alpha_max or len(line.trials) >= self.max_iter:
                return None
            a = min(_extrapolate(before, trial), self.alpha_max)
            before, trial = trial, self._evaluate(line, a, trial)
        return trial

    def _zoom(self, line: Line, low: LinePoint, high: LinePoint) -> LinePoint | None:
        """Shrink the interval; ``low`` is its lowest point so far, and phi falls from it towards ``high``."""
        while len(line.trials) < self.max_iter and (a := _interpolate(low, high)) not in (low.a, high.a):
            trial = self._evaluate(line, a, low)
            if self._accepts(line, trial):
                return trial
            if self._is_high(line, trial, low):
                high = trial
                continue
            assert trial.slope is not None
            low, high = trial, low if trial.slope * (high.a - low.a) >= 0 else high
        return None

    def _evaluate(self, line: Line, a: float, best: LinePoint) -> LinePoint:
        """Evaluate phi at ``a``, and its slope unless the loss is too high."""
        trial = line.value(a)
        if trial.slope is not None or self._is_high(line, trial, best):
            return trial
        line.trials.pop()  # the same point again, with its slope
        return line.value_and_slope(a)

    def _is_high(self, line: Line, trial: LinePoint, best: LinePoint) -> bool:
        falls = trial.loss <= best.loss + line.rounding  # False where the loss is NaN
        return not (falls and self._decreases(line, trial))

    def _decreases(self, line: Line, trial: LinePoint) -> bool:
        return trial.loss <= line.origin.loss + self.c1 * trial.a * line.slope + line.rounding

    def _accepts(self, line: Line, trial: LinePoint) -> bool:
        flat = trial.slope is not None and abs(trial.slope) <= self.c2 * abs(line.slope)
        return flat and self._decreases(line, trial)


def _extrapolate(before: LinePoint, last: LinePoint) -> float:
    """Return a longer step: the cubic's minimizer, kept between 1.1 and 4 times the last interval ahead."""
    width = last.a - before.a
    minimizer = _cubic_minimizer(before, last)
    return last.a + 4 * width if minimizer is None else min(max(minimizer, last.a + 1.1 * width), last.a + 4 * width)


def _interpolate(low: LinePoint, high: LinePoint) -> float:
    """Return a point inside the interval, at least a tenth of its width away from either end."""
    minimizer = _parabola_minimizer(low, high) if high.slope is None else _cubic_minimizer(low, high)
    width = high.a - low.a
    share = 0.5 if minimizer is None else (minimizer - low.a) / width
    return low.a + min(max(share, 0.1), 0.9) * width


def _cubic_minimizer(first: LinePoint, second: LinePoint) -> float | None:
    """Return the minimizer of the cubic with both values and slopes, None where there is none."""
    assert first.slope is not None
    assert second.slope is not None
    width = second.a - first.a
    mean = first.slope + second.slope - 3 * (second.loss - first.loss) / width
    square = mean * mean - first.slope * second.slope
    if not (math.isfinite(square) and square >= 0):
        return None
    root = math.copysign(math.sqrt(square), width)
    curvature = second.slope - first.slope + 2 * root
    return second.a - width * (second.slope + root - mean) / curvature if curvature != 0 else None


def _parabola_minimizer(low: LinePoint, high: LinePoint) -> float | None:
    """Return the minimizer of the parabola with both values and the slope at ``low``, None where there is none."""
    assert low.slope is not None
    width = high.a - low.a
    bend = high.loss - low.loss - low.slope * width
    return low.a - low.slope * width**2 / (2 * bend) if math.isfinite(bend) and bend > 0 else None
