"""Learning-rate schedules: pure functions from the step to a factor of the learning rate."""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(step: int) -> float:
    """Return 1."""
    return 1.0


def cosine(length: int, floor: float = 0.0) -> Schedule:
    """Return floor + (1 - floor) (1 + cos(pi k/length))/2, from k = length on ``floor`` (Loshchilov & Hutter, 2017)."""
    return lambda step: floor + (1 - floor) * (1 + math.cos(math.pi * min(step / length, 1.0))) / 2


def piecewise(milestones: tuple[int, ...], factor: float = 0.1) -> Schedule:
    """Return ``factor`` to the power of the number of milestones reached."""
    return lambda step: factor ** sum(step >= milestone for milestone in milestones)


def exponential(base: float) -> Schedule:
    """Return base^k."""
    return lambda step: base**step


def warmed_up(schedule: Schedule, warmup: int) -> Schedule:
    """Return k/warmup for the steps k = 0..warmup, then ``schedule`` from its step 0; for warmup 0 ``schedule``."""
    if warmup == 0:
        return schedule
    return lambda step: step / warmup if step <= warmup else schedule(step - warmup - 1)


def schedule_named(name: str | None, steps: int, warmup: int = 0) -> Schedule:
    """Return a schedule after ``warmup`` steps of warm-up.

    Args:
        name: cosine-decay, cosine-4000, cosine-decay-floored, linear or exponential, in any case; None: constant.
        steps: length of the run.
        warmup: number of steps.

    Raises:
        ValueError: for other names.
    """
    table: dict[str | None, Schedule] = {
        None: constant,
        "cosine-decay": cosine(steps),
        "cosine-4000": cosine(4000),
        "cosine-decay-floored": cosine(steps, floor=1 / 25),
        "linear": piecewise(tuple(steps * eighths // 8 for eighths in (3, 5, 7))),
        "exponential": exponential(0.99),
    }
    key = name.lower() if name else None
    if key not in table:
        raise ValueError(f"unknown scheduler {name!r}; known: {', '.join(filter(None, table))}")
    return warmed_up(table[key], warmup)
