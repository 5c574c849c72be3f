"""Products of options without all of their combinations."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(*options: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return combinations of the options in which every pair of values of two options occurs, always the same ones.

    Greedy: each combination is the first of those that have the most pairs which have not occurred.
    """
    every = list(product(*(range(len(values)) for values in options)))
    pairs = {chosen: set(combinations(enumerate(chosen), 2)) for chosen in every}
    missing = set().union(*pairs.values())
    result = []
    while missing:
        best = max(every, key=lambda chosen: len(pairs[chosen] & missing))
        missing -= pairs[best]
        result.append(tuple(values[index] for values, index in zip(options, best, strict=True)))
    return result
