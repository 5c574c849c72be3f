"""Stored states whose entries were changed are refused by name, or continue as if nothing had been changed."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from optimizer_runs import CASES, always_the_same, built
from small_training import trainer
from states import assert_equal_states, without_times
from stop_requests import RequestAt
from torch import Tensor

from fullbatch.training.trainer import Trainer

STEPS, DELETED = 2, object()
WEIGHTS = (("state", "model"), ("state", "ema"))
"""Their entries are checked by ``load_weights``."""


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    """A state inside step 2, in the second of the two passes of the regularized gradient."""
    first = trainer(STEPS)
    first.step.block_pass.requests = RequestAt(7)
    first.run()
    assert first.state.inside is not None
    return copy.deepcopy(first.state.state_dict())


@pytest.fixture(scope="module")
def expected() -> Trainer:
    uninterrupted = trainer(STEPS)
    uninterrupted.run()
    return uninterrupted


def places(content: Any, name: tuple[Any, ...] = ("state",)) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each entry; of lists of more than two, the first and the last."""
    pairs = list(content.items() if isinstance(content, dict) else enumerate(content))
    for key, value in pairs if isinstance(content, dict) else [*pairs[:1], *pairs[1:][-1:]]:
        yield (*name, key)
        if isinstance(value, dict | list):
            yield from places(value, (*name, key))


def changes(value: Any) -> Iterator[Any]:
    yield from (DELETED, None, "text", -1, [10**30], {3: 4})
    if isinstance(value, float):
        yield torch.nan
    if isinstance(value, Tensor):
        yield value.new_zeros((*value.shape, 2))
        if value.is_floating_point():
            yield from (value * torch.nan, value + 1j)


def changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a state with another entry at a place, whose first key is "state"."""
    _, *keys = place
    if not keys:
        return value
    copied, (key, *rest) = copy.copy(content), keys
    if rest or value is not DELETED:
        copied[key] = changed(content[key], ("", *rest), value) if rest else value
    else:
        del copied[key]
    return copied


def lookup(content: dict[str, Any], place: tuple[Any, ...]) -> Any:
    value: Any = {"state": content}
    for key in place:
        value = value[key]
    return value


def test_changed_entries_are_refused_or_change_no_number(stored: dict[str, Any], expected: Trainer) -> None:
    refused: list[str] = []
    accepted, reader = 0, trainer(STEPS)
    for place in (place for place in places(stored) if place[:2] not in WEIGHTS or len(place) == 2):
        value = lookup(stored, place)
        for change in changes(value):
            if place[1] in ("rows", "stopped") and isinstance(change, int | str):
                continue  # another number or reason, which no reader can detect
            state = changed(stored, place, change)
            try:
                reader.state.load_state_dict(state)
            except ValueError as error:
                refused.append(str(error))
                continue
            accepted += 1
            resumed = trainer(STEPS)
            resumed.state.load_state_dict(copy.deepcopy(state))
            resumed.run()
            (*_, row), (*_, other) = without_times(resumed.state.rows), without_times(expected.state.rows)
            assert row == other, (place, change)
            ours, theirs = resumed.state.state_dict(), expected.state.state_dict()
            for part in ("model", "optimizer", "ema"):
                assert_equal_states(ours[part], theirs[part])
    assert all(len(message.splitlines()) == 1 for message in refused)
    assert len(refused) > 200
    assert accepted > 5


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            ("param_groups", 0, "weight_decay"),
            0.5,
            r"groups\.0\.weight_decay is 0\.5, in the configuration it is 0\.0005$",
        ),
        (("param_groups", 0, "initial_lr"), 0.5, r"groups\.0\.initial_lr is 0\.5, in the configuration it is 0\.05$"),
        (
            ("state", 1, "momentum_buffer"),
            torch.full((4,), torch.inf),
            r"^the file holds non-finite values \(the entry ",
        ),
        (("state", 1), {}, r"^the entries of state\.optimizer\.state differ between parameters; some are missing$"),
        (("state", 99), {}, r"^the entry state\.optimizer\.state\.99 belongs to no parameter; the optimizer has 6$"),
    ],
)
def test_entries_of_the_optimizer_are_named(
    stored: dict[str, Any], place: tuple[Any, ...], value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(STEPS).state.load_state_dict(changed(stored, ("state", "optimizer", *place), value))


def test_the_learning_rate_is_that_of_the_schedule(stored: dict[str, Any], expected: Trainer) -> None:
    resumed = trainer(STEPS)
    resumed.state.load_state_dict(changed(stored, ("state", "optimizer", "param_groups", 0, "lr"), 7.0))
    resumed.run()
    assert [row["lr"] for row in resumed.state.rows] == [row["lr"] for row in expected.state.rows]


@pytest.mark.parametrize("name", ["gd, wolfe", "gd, non-monotone", "lbfgs", "ASAM, fista"])
def test_shared_entries_and_cached_evaluations_are_checked(name: str) -> None:
    build = always_the_same if name == "gd, wolfe" else built
    first = build(CASES[name])
    first.run()
    content = copy.deepcopy(first.state.state_dict())
    build(CASES[name]).state.load_state_dict(content)
    shared = [key for key in content["optimizer"]["state"] if isinstance(key, str)]
    wrong = [changed(content, ("state", "optimizer", "state", key), 3) for key in shared]
    if content["cached"] is not None:
        wrong.append(changed(content, ("state", "cached", "gradient", 0), torch.zeros(99)))
        wrong.append(changed(content, ("state", "cached", "norm"), DELETED))
    assert wrong
    for state in wrong:
        with pytest.raises(ValueError, match="the entry state"):
            build(CASES[name]).state.load_state_dict(state)
