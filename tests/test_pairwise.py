"""Every pair of values occurs, in fewer combinations than there are."""

from itertools import combinations, product

from pairwise import pairwise


def test_every_pair_occurs() -> None:
    options = ["abcde", "xyz", "pq", "uvw"]
    chosen = pairwise(*options)
    for first, second in combinations(range(4), 2):
        assert {(one[first], one[second]) for one in chosen} == {*product(options[first], options[second])}
    assert len(chosen) <= 17  # of 90; at least 15
    assert pairwise(*options) == chosen
