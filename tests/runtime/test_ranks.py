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
