"""Ranks: a table of environments, and shares that leave nothing out."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullbatch.runtime.ranks import Launch, Ranks, launch_of, share, started_by_torchrun

TORCHRUN = {
    **{"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
    **{"MASTER_ADDR": "gpu1", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"},
}
SLURM = {
    **{"SLURM_NODEID": "1", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456"},
    **{"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NODELIST": "gpu[07-09,12],login"},
}
SETUP = {"rank": 0, "world_size": 1, "url": "tcp://127.0.0.1:?"}

TABLE: dict[str, tuple[dict[str, str], dict[str, Any], Launch]] = {
    "a single node": ({}, {}, Launch(0, 1, "127.0.0.1", 0)),
    "env:// of a single node": ({}, {"url": "env://", "rank": "slurm"}, Launch(0, 1, "127.0.0.1", 0)),
    "numbers": (
        {},
        {"rank": 1, "world_size": 3, "url": "tcp://10.0.0.7:4242"},
        Launch(1, 3, "10.0.0.7", 4242),
    ),
    "torchrun takes precedence": (
        {**TORCHRUN, **SLURM},
        {"rank": "slurm", "world_size": 4, "processes_per_node": -1},
        Launch(0, 1, "gpu1", 29500, Ranks(5, 8, 1, 4), True),
    ),
    "slurm": ({**SLURM}, {"rank": "slurm", "world_size": 2, "url": "env://"}, Launch(1, 2, "gpu07", 23456)),
    "slurm, with an address": (
        {**SLURM, "MASTER_ADDR": "gpu07.cluster", "MASTER_PORT": "1234"},
        {"rank": "slurm", "world_size": 2, "url": "env://"},
        Launch(1, 2, "gpu07.cluster", 1234),
    ),
    "settings replace the environment": (
        {**SLURM, "MASTER_ADDR": "gpu07.cluster", "MASTER_PORT": "1234"},
        {"rank": "slurm", "world_size": 2, "url": "env://", "master_address": "here", "master_port": 99},
        Launch(1, 2, "here", 99),
    ),
    "slurm, another notation": (
        {**SLURM, "SLURM_STEP_NODELIST": "rack[2-3]n[01-02]-ib[0,7],login"},
        {"rank": "slurm", "world_size": 2, "url": "env://"},
        Launch(1, 2, "rack2n01-ib0", 23456),
    ),
    "slurm starts unequally many": (
        {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "5,3"},
        {"rank": "slurm", "url": "env://", "processes_per_node": -1},
        Launch(0, 1, "gpu07", 23456, Ranks(5, 8, 1, 3)),
    ),
    "slurm starts every process": (
        SLURM,
        {"rank": "slurm", "url": "env://", "processes_per_node": -1},
        Launch(0, 1, "gpu07", 23456, Ranks(5, 8, 1, 4)),
    ),
    "a launcher starts every process": (
        {},
        {"rank": 2, "world_size": 3, "url": "tcp://here:77", "processes_per_node": -1},
        Launch(0, 1, "here", 77, Ranks(2, 3)),
    ),
    "pbs": ({"PBS_NODENUM": "2"}, {"rank": "pbs", "world_size": 3, "url": "tcp://a:1"}, Launch(2, 3, "a", 1)),
}

MISTAKES: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "no variable": ({}, {"rank": "slurm", "world_size": 2, "url": "tcp://a:1"}, "variable SLURM_NODEID is not set"),
    "no pbs": ({}, {"rank": "pbs", "world_size": 2, "url": "tcp://a:1"}, "variable PBS_NODENUM is not set"),
    "not a number": (
        {"SLURM_NODEID": "x"},
        {"rank": "slurm", "world_size": 2, "url": "tcp://a:1"},
        "SLURM_NODEID=x should be a number",
    ),
    "too large": ({}, {"rank": 2, "world_size": 2, "url": "tcp://a:1"}, "rank: 2 of world_size=2; accepted: 0 to 1"),
    "a free port": ({}, {"rank": 1, "world_size": 2}, "not a free one"),
    "nowhere": ({}, {"rank": 1, "world_size": 2, "url": "env://"}, "give MASTER_ADDR and MASTER_PORT"),
    "half a list": (
        {"SLURM_NODEID": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "gpu[07-"},
        {"rank": "slurm", "world_size": 2, "url": "env://"},
        "give MASTER_ADDR and MASTER_PORT",
    ),
    "another url": ({}, {"url": "file:///x"}, "url=file:///x: accepted: tcp://"),
    "processes of pbs": ({}, {"rank": "pbs", "processes_per_node": -1}, "rank=PBS: numbers nodes, not processes"),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_launch_of_a_process(name: str) -> None:
    environment, setup, expected = TABLE[name]
    assert launch_of(environment, **{**SETUP, **setup}) == expected


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    environment, setup, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        launch_of(environment, **{**SETUP, **setup})


def test_the_process_of_rank_0_is_the_main_one() -> None:
    assert launch_of({}, **SETUP).is_main
    assert launch_of({**TORCHRUN, "RANK": "0"}, **SETUP).is_main
    assert not launch_of(TORCHRUN, **SETUP).is_main
    assert not launch_of({}, rank=1, world_size=2, url="tcp://a:1").is_main
    assert started_by_torchrun(TORCHRUN)
    assert not started_by_torchrun({**TORCHRUN, "WORLD_SIZE": "1"})
    assert not started_by_torchrun(SLURM)


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_consecutive_and_whole(number: int, size: int) -> None:
    shares = [range(number)[share(number, rank, size)] for rank in range(size)]
    assert list(itertools.chain(*shares)) == list(range(number))
    lengths = [len(some) for some in shares]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1


NAMES = st.text("abz09-", min_size=1, max_size=3)
WIDTHS = st.integers(1, 4)
GROUPS = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 3)), min_size=1, max_size=3)
HOSTS = st.lists(st.tuples(NAMES, WIDTHS, GROUPS) | st.tuples(NAMES, WIDTHS, st.none()), min_size=1, max_size=4)


def expanded(parts: list[tuple[str, int, list[tuple[int, int]] | None]]) -> list[str]:
    """Return the hosts of one entry of a list, slowly: every combination of the numbers of its brackets."""
    choices = [
        [name]
        if ranges is None
        else [f"{name}{number:0{width}}" for low, more in ranges for number in range(low, low + more + 1)]
        for name, width, ranges in parts
    ]
    return ["".join(one) for one in itertools.product(*choices)]


def written(parts: list[tuple[str, int, list[tuple[int, int]] | None]]) -> str:
    """Return the entry in SLURM's notation."""
    text = ""
    for name, width, ranges in parts:
        inside = [f"{a:0{width}}" + (f"-{a + more:0{width}}" if more else "") for a, more in ranges or ()]
        text += name + (f"[{','.join(inside)}]" if inside else "")
    return text


@given(st.lists(HOSTS, min_size=1, max_size=3), st.sampled_from(["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"]))
def test_the_first_host_of_a_list(entries: list[Any], variable: str) -> None:
    environment = {"SLURM_NODEID": "0", "SLURM_JOB_ID": "1", variable: ",".join(map(written, entries))}
    launch = launch_of(environment, rank="slurm", world_size=2, url="env://")
    assert launch.address == expanded(entries[0])[0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.data())
def test_the_processes_of_a_node(counts: list[int], data: st.DataObject) -> None:
    node = data.draw(st.integers(0, len(counts) - 1))
    groups = [(count, len(list(same))) for count, same in itertools.groupby(counts)]
    listed = ",".join(f"{count}(x{number})" if number > 1 else str(count) for count, number in groups)
    environment = {**SLURM, "SLURM_NODEID": str(node), "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": listed}
    launch = launch_of(environment, rank="slurm", world_size=1, url="env://", processes_per_node=-1)
    assert launch.given == Ranks(5, 8, 0, counts[node])
