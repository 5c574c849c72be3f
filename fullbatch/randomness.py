"""Counter-based randomness: every random number of the project is a pure function of integers.

A draw is identified by its counters, (seed, step, sample, ...), instead of by the number of draws before it. So it does
not depend on the block size, the number of workers or ranks, other draws, or how often a step is evaluated. The mixing
function is the finalizer of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), applied once per counter.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def derive_seed(*counters: int) -> int:
    """Return a hash of the counters, an integer in [0, 2^63), which ``torch.manual_seed`` accepts."""
    state = 0
    for counter in counters:
        state = _mix((state ^ (counter & _MASK)) + _GOLDEN)
    return state >> 1


def random_bits(ids: Tensor, *counters: int) -> Tensor:
    """Return 63 random bits for each id: int64 in [0, 2^63), of the shape and on the device of ``ids``.

    They are equal to ``derive_seed(*counters, id)`` for every entry.
    """
    state = 0
    for counter in counters:
        state = _mix((state ^ (counter & _MASK)) + _GOLDEN)
    value = (ids ^ _signed(state)) + _signed(_GOLDEN)
    value = (value ^ _shift_right(value, 30)) * _signed(_MIX_1)  # int64 products wrap around, as in ``_mix``
    value = (value ^ _shift_right(value, 27)) * _signed(_MIX_2)
    return _shift_right(value ^ _shift_right(value, 31), 1)


def random_uniform(ids: Tensor, *counters: int) -> Tensor:
    """Return a float32 number in [0, 1) for each id, the same on every device (24 random bits)."""
    return (random_bits(ids, *counters) >> 39).to(torch.float32) * 2.0**-24


def random_integers(ids: Tensor, high: int, *counters: int) -> Tensor:
    """Return an int64 number in [0, high) for each id; the bias of the remainder is below high / 2^62."""
    return random_bits(ids, *counters).remainder(high)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of the CPU and of ``device`` inside, and restore their states afterwards."""
    with preserved_rng(device):
        # as torch.manual_seed, which takes 0.1 ms more for kinds of devices that are not used
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            module = torch.get_device_module(device)
            getattr(module, "manual_seed_all", module.manual_seed)(seed)  # MPS is always one device
        yield


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Restore the states of the global generators of the CPU and of ``device`` afterwards."""
    accelerator = "cuda" if device.type == "cpu" else device.type  # with an empty list of devices any type will do
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=accelerator):
        yield


def rng_states(device: torch.device) -> tuple[Tensor, ...]:
    """Return the states of the global generators of the CPU and of ``device``."""
    cpu = torch.get_rng_state()
    return (cpu,) if device.type == "cpu" else (cpu, torch.get_device_module(device).get_rng_state())


def set_rng_states(states: tuple[Tensor, ...], device: torch.device) -> None:
    """Set the global generators to states from ``rng_states``."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1])


def _mix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:  # logical: int64 >> is arithmetic
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
