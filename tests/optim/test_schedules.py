"""Schedules compared to tables of factors, the end of the warm-up included."""

import math

import pytest

from fullbatch.optim.schedules import schedule_named


def factors(name: str | None, steps: int, warmup: int = 0, num: int | None = None) -> list[float]:
    schedule = schedule_named(name, steps, warmup)
    return [schedule(step) for step in range(num or steps)]


def test_the_documented_warm_up_table() -> None:
    expected = [0, 0.33333, 0.66667, 1, 1, 0.97553, 0.90451, 0.79389, 0.65451, 0.5]
    assert factors("cosine-decay", 10, warmup=3) == pytest.approx(expected, abs=1e-5)


def test_factors() -> None:
    table = [
        (None, 3, [1, 1, 1]),
        ("", 2, [1, 1]),
        ("cosine-decay", 4, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("COSINE-DECAY", 2, [1, 0.5]),
        ("linear", 8, [1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001]),
        ("linear", 10, [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        ("exponential", 3, [1, 0.99, 0.9801]),
    ]
    for name, steps, expected in table:
        assert factors(name, steps) == pytest.approx(expected, rel=1e-12), name


def test_cosine_4000_does_not_depend_on_the_length_of_the_run() -> None:
    schedule = schedule_named("cosine-4000", 3000)
    assert [schedule(0), schedule(2000), schedule(4000), schedule(5000)] == pytest.approx([1, 0.5, 0, 0], abs=1e-12)


def test_the_floor_is_a_twenty_fifth() -> None:
    schedule = schedule_named("cosine-decay-floored", 100)
    assert [schedule(0), schedule(50), schedule(100), schedule(200)] == pytest.approx([1, 0.52, 0.04, 0.04])


def test_after_the_warm_up_the_schedule_starts_at_its_step_0() -> None:
    for name in (None, "cosine-decay", "linear", "exponential"):
        plain, warm = factors(name, 20, num=14), factors(name, 20, warmup=5)
        assert warm[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
        assert warm[6:] == plain


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown scheduler 'sawtooth'; known: cosine-decay, .*exponential"):
        schedule_named("sawtooth", 10)
