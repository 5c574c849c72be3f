"""The strong Wolfe search: bracket, then zoom by cubic interpolation (Nocedal & Wright, 2006, section 3.5)."""

import math
from typing import Any

from fullbatch.optim.line_search import Line, LineSearch, Trial


class Wolfe(LineSearch):
    """Finds a with phi(a) <= phi(0) + c1 a phi'(0), up to rounding, and |phi'(a)| <= c2 |phi'(0)|.

    1. ``search``: from a = 1, longer steps until an interval holds such points, at most ``alpha_max``.
    2. ``_zoom``: try the minimizer of the cubic through the ends of the interval, or of the parabola where the slope at
       one end is not known, kept away from both; it is an end of the next, smaller interval.

    The first trial, which is accepted most of the time, computes its slope along; a later one only where its loss is
    low enough, so that the others cost forward passes alone. ``max_iter`` trials in all.
    """

    def __init__(self, c1: float = 1e-4, c2: float = 0.9, alpha_max: float = 10.0, max_iter: int = 10) -> None:
        self.c1, self.c2, self.alpha_max, self.max_iter = c1, c2, alpha_max, max_iter

    def search(self, line: Line, memory: dict[str, Any]) -> Trial | None:
        """Bracket, then zoom. Where phi still falls steeply at ``alpha_max``, that is the fallback."""
        before, trial = line.origin, line.value_and_slope(min(1.0, self.alpha_max))
        while not self._accepts(line, trial):
            if self._is_high(line, trial, before):
                return self._zoom(line, before, trial)
            assert trial.slope is not None
            if trial.slope >= 0:
                return self._zoom(line, trial, before)
            if trial.a >= self.alpha_max or len(line.trials) >= self.max_iter:
                return None
            before, trial = trial, self._try(line, min(_beyond(before, trial), self.alpha_max), trial)
        return trial

    def _zoom(self, line: Line, low: Trial, high: Trial) -> Trial | None:
        """``low`` is the best point so far, and phi falls from it towards ``high``."""
        while len(line.trials) < self.max_iter and (a := _between(low, high)) not in (low.a, high.a):
            trial = self._try(line, a, low)
            if self._accepts(line, trial):
                return trial
            if self._is_high(line, trial, low):
                high = trial
                continue
            assert trial.slope is not None
            low, high = trial, low if trial.slope * (high.a - low.a) >= 0 else high
        return None

    def _try(self, line: Line, a: float, best: Trial) -> Trial:
        trial = line.value(a)
        if trial.slope is not None or self._is_high(line, trial, best):
            return trial
        line.trials.pop()  # the same point again, with its slope
        return line.value_and_slope(a)

    def _is_high(self, line: Line, trial: Trial, best: Trial) -> bool:
        falls = trial.loss <= best.loss + line.rounding  # wrong where the loss is not a number
        return not (falls and self._low_enough(line, trial))

    def _low_enough(self, line: Line, trial: Trial) -> bool:
        return trial.loss <= line.origin.loss + self.c1 * trial.a * line.slope + line.rounding

    def _accepts(self, line: Line, trial: Trial) -> bool:
        flat = trial.slope is not None and abs(trial.slope) <= self.c2 * abs(line.slope)
        return flat and self._low_enough(line, trial)


def _beyond(before: Trial, last: Trial) -> float:
    """Return a longer step: the cubic's minimizer where that is 1.1 to 4 times as far ahead as the last was, else 4."""
    width = last.a - before.a
    wanted = _cubic_minimizer(before, last)
    return last.a + 4 * width if wanted is None else min(max(wanted, last.a + 1.1 * width), last.a + 4 * width)


def _between(low: Trial, high: Trial) -> float:
    """Return a point inside the interval, a tenth of its width away from the ends at least."""
    wanted = _parabola_minimizer(low, high) if high.slope is None else _cubic_minimizer(low, high)
    width = high.a - low.a
    share = 0.5 if wanted is None else (wanted - low.a) / width
    return low.a + min(max(share, 0.1), 0.9) * width


def _cubic_minimizer(one: Trial, other: Trial) -> float | None:
    """Return the minimizer of the cubic with both values and slopes, None where there is none."""
    assert one.slope is not None
    assert other.slope is not None
    width = other.a - one.a
    mean = one.slope + other.slope - 3 * (other.loss - one.loss) / width
    square = mean * mean - one.slope * other.slope
    if not (math.isfinite(square) and square >= 0):
        return None
    root = math.copysign(math.sqrt(square), width)
    curvature = other.slope - one.slope + 2 * root
    return other.a - width * (other.slope + root - mean) / curvature if curvature != 0 else None


def _parabola_minimizer(low: Trial, high: Trial) -> float | None:
    """Return the minimizer of the parabola with both values and the slope at ``low``, None where there is none."""
    assert low.slope is not None
    width = high.a - low.a
    bend = high.loss - low.loss - low.slope * width
    return low.a - low.slope * width**2 / (2 * bend) if math.isfinite(bend) and bend > 0 else None
