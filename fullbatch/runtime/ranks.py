"""The rank of this process in its run, and the address of the others: a pure function of settings and environment.

A *node* is a machine; each node of a run starts some processes; processes have *ranks*, 0 to R-1, node by node.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

NODE_VARIABLES = {"slurm": "SLURM_NODEID", "pbs": "PBS_NODENUM"}
"""The environment variables of ``rank=SLURM`` and ``rank=PBS``."""
_FREE_PORTS = range(20_000, 30_000)  # the job's number chooses one where SLURM gives an address without a port


@dataclass(frozen=True)
class Ranks:
    """The rank of a process among all of its run, and among those of its node."""

    rank: int
    size: int
    local_rank: int = 0
    local_size: int = 1


@dataclass(frozen=True)
class Launch:
    """How the processes of a run are started and find each other.

    Args:
        node: the number of this node.
        num_nodes: the number of nodes.
        address: of the main process, that of rank 0.
        port: where it listens; 0: any free port, which only the processes that it starts itself can know.
        given: the ranks of this process, if a launcher has started all processes; None: nodes start their own.
        hosted: whether the launcher serves the store at the port already.
    """

    node: int
    num_nodes: int
    address: str
    port: int
    given: Ranks | None = None
    hosted: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process has rank 0."""
        return (self.given.rank if self.given else self.node) == 0


def launch_of(
    environment: Mapping[str, str],
    *,
    rank: int | str,
    world_size: int,
    url: str,
    master_address: str | None = None,
    master_port: int | None = None,
    processes_per_node: int = 1,
) -> Launch:
    """Return how this process takes part; torchrun's environment variables take precedence over everything else.

    Args:
        environment: the environment variables.
        rank: of the node, or where to read it: ``slurm``, ``pbs``.
        world_size: the number of nodes.
        url: ``tcp://address:port``, with ``?`` for any free port, or ``env://``: MASTER_ADDR and MASTER_PORT.
        master_address: replaces MASTER_ADDR.
        master_port: replaces MASTER_PORT.
        processes_per_node: -1: a launcher has started each process, and ``rank`` and ``world_size`` count processes.

    Raises ``ValueError`` for missing or contradictory values.
    """
    given = _from_torchrun(environment)
    if given is None and processes_per_node == -1:
        given = _from_settings(environment, rank, world_size)
    node, num_nodes = (0, 1) if given else (_node(environment, rank, world_size), world_size)
    alone = num_nodes == 1 if given is None else given.size == 1
    address, port = _meeting_point(environment, url, master_address, master_port, alone=alone)
    if port == 0 and not alone:
        raise ValueError(f"impl.setup.url={url}: several nodes need a port that all of them know, not a free one")
    hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and "RANK" in environment
    return Launch(node, num_nodes, address, port, given, hosted)


def started_by_torchrun(environment: Mapping[str, str]) -> bool:
    """Return whether torchrun, or a launcher that sets its variables, has started this process as one of several."""
    ranks = _from_torchrun(environment)
    return ranks is not None and ranks.size > 1


def share(number: int, rank: int, size: int) -> slice:
    """Return a rank's share of ``number`` items: consecutive ones, and one more for each of the first ranks."""
    least, more = divmod(number, size)
    start = rank * least + min(rank, more)
    return slice(start, start + least + (rank < more))


def _from_torchrun(environment: Mapping[str, str]) -> Ranks | None:
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= environment.keys():
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, size, local_rank = (_number(environment, name) for name in names)
    return Ranks(rank, size, local_rank, _number(environment, "LOCAL_WORLD_SIZE", default=size))


def _from_settings(environment: Mapping[str, str], rank: int | str, world_size: int) -> Ranks:
    if rank == "pbs":
        raise ValueError("impl.setup.rank=PBS: numbers nodes, not processes; give each process its number")
    if rank == "slurm":
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        rank, world_size, local_rank = (_number(environment, name) for name in names)
        node = _number(environment, "SLURM_NODEID", default=0)
        local_size = _tasks_of_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""), node)
        return Ranks(rank, world_size, local_rank, max(local_size, local_rank + 1))
    return Ranks(_below(int(rank), world_size), world_size)


def _node(environment: Mapping[str, str], rank: int | str, world_size: int) -> int:
    if not isinstance(rank, str):
        return _below(rank, world_size)
    variable = NODE_VARIABLES[rank]
    if variable not in environment and world_size == 1:
        return 0
    return _below(_number(environment, variable), world_size)


def _below(rank: int, world_size: int) -> int:
    if not 0 <= rank < world_size:
        raise ValueError(f"impl.setup.rank: {rank} of world_size={world_size}; accepted: 0 to {world_size - 1}")
    return rank


def _meeting_point(
    environment: Mapping[str, str], url: str, address: str | None, port: int | None, *, alone: bool
) -> tuple[str, int]:
    if _from_torchrun(environment) is not None:
        return _variable(environment, "MASTER_ADDR"), _number(environment, "MASTER_PORT")
    if url.lower() != "env://":
        match = re.fullmatch(r"tcp://([^:/\s]+):(\d+|\?)", url)
        if match is None:
            raise ValueError(f"impl.setup.url={url}: accepted: tcp://address:port, tcp://127.0.0.1:?, env://")
        return match[1], 0 if match[2] == "?" else int(match[2])
    address = address or environment.get("MASTER_ADDR") or _first_host(environment)
    if port is None and "MASTER_PORT" in environment:
        port = _number(environment, "MASTER_PORT")
    if alone:
        return address or "127.0.0.1", port or 0
    if port is None and "SLURM_JOB_ID" in environment:
        port = _FREE_PORTS[_number(environment, "SLURM_JOB_ID") % len(_FREE_PORTS)]
    if address is None or port is None:
        raise ValueError("impl.setup.url=env://: give MASTER_ADDR and MASTER_PORT, in the environment or impl.setup")
    return address, port


def _first_host(environment: Mapping[str, str]) -> str | None:
    """Return the first host of a list in SLURM's notation: that of ``rack[2-3]n[07-09,12]-ib,login`` is rack2n07-ib."""
    listed = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    match = re.fullmatch(r"((?:[^\[\],]|\[[^\[\]]+\])+)(,.*)?", listed)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", match[1]) if match else None


def _tasks_of_node(listed: str, node: int) -> int:
    """Return an entry of a list in SLURM's notation: those of ``4(x2),3`` are 4, 4 and 3; 1 where it is missing."""
    entries = re.findall(r"(\d+)(?:\(x(\d+)\))?", listed)
    counts = [int(count) for count, repeated in entries for _ in range(min(int(repeated or 1), node + 1))]
    return counts[node] if node < len(counts) else 1


def _variable(environment: Mapping[str, str], name: str) -> str:
    if name not in environment:
        raise ValueError(f"impl/setup=distributed: the environment variable {name} is not set")
    return environment[name]


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and name not in environment:
        return default
    text = _variable(environment, name)
    if not text.strip().isdecimal():
        raise ValueError(f"impl/setup=distributed: the environment variable {name}={text} should be a number")
    return int(text)
