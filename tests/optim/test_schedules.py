"""Schedules against tables of expected factors, the end of the warm-up included."""

import math

import pytest

from fullbatch.optim.schedules import schedule_named


def factors(name: str | None, steps: int, warmup: int = 0, num: int | None = None) -> list[float]:
    schedule = schedule_named(name, steps, warmup)
    return [schedule(step) for step in range(num or steps)]


def test_the_documented_warm_up_table() -> None:
    expected = [0, 0.33333, 0.66667, 1, 1, 0.97553, 0.90451, 0.79389, 0.65451, 0.5]
    assert factors("cosine-decay", 10, warmup=3) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        (None, 3, [1, 1, 1]),
        ("", 2, [1, 1]),
        ("cosine-decay", 4, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("COSINE-DECAY", 2, [1, 0.5]),
        ("linear", 8, [1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001]),
        ("linear", 10, [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        ("exponential", 3, [1, 0.99, 0.9801]),
    ],
)
def test_factors(name: str | None, steps: int, expected: list[float]) -> None:
    assert factors(name, steps) == pytest.approx(expected, rel=1e-12)


def test_cosine_4000_has_its_length_whatever_the_run_has() -> None:
    schedule = schedule_named("cosine-4000", 3000)
    assert [schedule(0), schedule(2000), schedule(4000), schedule(5000)] == pytest.approx([1, 0.5, 0, 0], abs=1e-12)


def test_the_floor_is_a_twenty_fifth() -> None:
    schedule = schedule_named("cosine-decay-floored", 100)
    assert [schedule(0), schedule(50), schedule(100), schedule(200)] == pytest.approx([1, 0.52, 0.04, 0.04])


@pytest.mark.parametrize("name", [None, "cosine-decay", "linear", "exponential"])
def test_after_the_warm_up_the_schedule_starts_at_its_own_step_0(name: str | None) -> None:
    plain, warm = factors(name, 20, num=14), factors(name, 20, warmup=5)
    assert warm[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert warm[6:] == plain


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown scheduler 'sawtooth'; known: cosine-decay, .*exponential"):
        schedule_named("sawtooth", 10)
