"""Counter-based random numbers are pure functions of the counters, well distributed, and change no generator."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fullbatch.randomness import (
    derive_seed,
    preserved_rng,
    random_bits,
    random_integers,
    random_uniform,
    rng_states,
    seeded,
    set_rng_states,
)

CPU = torch.device("cpu")
counters = st.integers(-(2**63), 2**63 - 1)


def test_the_mixing_function_is_splitmix64() -> None:
    """The first output of the published generator for seed 0 is 0xE220A8397B1DCDAF; ``derive_seed`` keeps 63 bits."""
    assert derive_seed(0) == 0xE220A8397B1DCDAF >> 1


@given(counters, counters, counters)
def test_scalar_and_tensor_agree(first: int, second: int, third: int) -> None:
    ids = torch.tensor([third, 0, -1])
    assert random_bits(ids, first, second).tolist() == [derive_seed(first, second, i) for i in (third, 0, -1)]


def test_a_number_does_not_depend_on_the_other_ids_or_their_order() -> None:
    ids = torch.arange(1000)
    order = torch.randperm(1000)
    assert torch.equal(random_bits(ids, 5)[order], random_bits(ids[order], 5))
    assert torch.equal(random_bits(ids[17:18], 5), random_bits(ids, 5)[17:18])


def test_uniform_numbers_fill_the_interval_evenly() -> None:
    numbers = random_uniform(torch.arange(100_000), 1, 2)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, 20, 0, 1)
    assert float(((counts - 5000).square() / 5000).sum()) < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    correlation = torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]
    assert abs(float(correlation)) < 0.01


def test_integers_are_in_range_and_even() -> None:
    counts = torch.bincount(random_integers(torch.arange(70_000), 7, 3), minlength=7)
    assert len(counts) == 7
    assert float(((counts - 10_000).square() / 10_000).sum()) < 22.5  # 6 degrees of freedom, p = 0.001


def test_streams_differ() -> None:
    ids = torch.arange(100)
    streams = [random_bits(ids, seed, step) for seed in range(3) for step in range(3)]
    assert len({tuple(stream.tolist()) for stream in streams}) == 9
    assert len({derive_seed(*args) for args in ((), (0,), (0, 0), (1,), (0, 1), (1, 0))}) == 6


def test_contexts_restore_the_generators() -> None:
    before = torch.get_rng_state()
    with seeded(3, CPU):
        first = torch.randn(3)
    with seeded(3, CPU):
        assert torch.equal(torch.randn(3), first)
    with preserved_rng(CPU):
        torch.randn(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeding_is_that_of_torch() -> None:
    with seeded(3, CPU):
        numbers = torch.randn(3)
    torch.manual_seed(3)
    assert torch.equal(numbers, torch.randn(3))


def test_states_repeat_the_numbers() -> None:
    states = rng_states(CPU)
    first = torch.randn(3)
    set_rng_states(states, CPU)
    assert torch.equal(torch.randn(3), first)
