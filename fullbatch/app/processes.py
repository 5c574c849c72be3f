"""The processes of one job: started or found, told what to do, and followed to their end.

The process of rank 0 is the one that was started by hand, or the first of torchrun's. It alone composes the job, writes
files and speaks; the others follow: they take the job from it and do their part of each evaluation.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fullbatch.runtime.device import find_device
from fullbatch.runtime.peer_monitor import PATIENCE, PeerLostError
from fullbatch.runtime.process_group import FOR_EVER, START, Group, joined, open_store
from fullbatch.runtime.ranks import Launch, Ranks, launch_of, started_by_torchrun
from fullbatch.settings import Impl
from fullbatch.settings.impl import Distributed

if TYPE_CHECKING:
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not listed

log = logging.getLogger(__name__)

OVER = "over"
_jobs = 0  # so far; those of a sweep meet in the same store, each below its own prefix
_stores: dict[tuple[str, int], "TCPStore"] = {}  # of this process: served as long as it lives


@dataclass(frozen=True)
class Work:
    """What the first process tells the others of a job."""

    tree: dict[str, Any]
    folder: str
    backend: str

    def to_json(self) -> str:
        """Return the text that ``of`` reads."""
        return json.dumps(vars(self))

    @classmethod
    def of(cls, text: str) -> "Work":
        """Read it."""
        return cls(**json.loads(text))


def launch_from(impl: Impl, environment: Mapping[str, str] = os.environ) -> Launch:
    """Return how this process takes part in a run; ``ValueError`` where settings and environment do not go together."""
    setup = impl.setup
    if isinstance(setup, Distributed):
        return launch_of(
            environment,
            rank=setup.rank,
            world_size=setup.world_size,
            url=setup.url,
            master_address=setup.MASTER_ADDR,
            master_port=setup.MASTER_PORT,
            processes_per_node=setup.processes_per_node,
        )
    if started_by_torchrun(environment):
        number = environment["WORLD_SIZE"]
        raise ValueError(f"impl/setup=single: torchrun started {number} processes; they need impl/setup=distributed")
    return Launch(0, 1, "127.0.0.1", 0, Ranks(0, 1))


def local_processes(impl: Impl) -> int:
    """Return how many processes a node starts: one a visible GPU, and on CPUs as many as are asked for."""
    device = find_device(impl.device)
    if device.type == "cuda":
        return torch.cuda.device_count() if device.index is None else 1
    asked = impl.setup.processes_per_node if isinstance(impl.setup, Distributed) else 1
    if device.type != "cpu" and asked > 1:
        raise ValueError(f"impl.setup.processes_per_node={asked}: one process on {device.type}; more with device=cpu")
    return max(asked, 1)


def backend_for(impl: Impl) -> str:
    """Return gloo for CPUs, else what is asked for."""
    asked = impl.setup.backend if isinstance(impl.setup, Distributed) else "gloo"
    return asked if find_device(impl.device).type == "cuda" else "gloo"


@contextmanager
def leading(launch: Launch, impl: Impl, tree: dict[str, Any], folder: Path) -> Iterator[Group]:
    """Start the others, or tell those that wait, and join them; for the process of rank 0.

    Raises ``PeerLostError`` where they do not come.
    """
    if launch.given is not None and launch.given.size == 1:
        yield Group(launch.given)
        return
    local = launch.given.local_size if launch.given else local_processes(impl)
    if launch.given is None and launch.num_nodes == 1 and local == 1:
        yield Group()
        return
    store = _store_of(launch)
    job = _next_job(store)
    ranks = launch.given or _ranks_of_nodes(job, launch, local)
    work = Work(tree, str(folder), backend_for(impl))
    job.set("work", work.to_json())
    meeting = replace(launch, port=store.port)
    with _started(launch, meeting, ranks) as children:
        log.info("%d processes, %s", ranks.size, work.backend)
        with joined(ranks, launch.address, job, backend=work.backend, alive=lambda: _require(children)) as group:
            yield group


@contextmanager
def following(launch: Launch, ranks: Ranks | None = None, local: int = 1) -> Iterator[tuple[Group, Work] | None]:
    """Join the next job of the first process; yield None where it has no more.

    Args:
        launch: where to find it.
        ranks: of this process; None: the first of its node, which starts the others.
        local: how many processes this node has.
    """
    job = _next_job(_store_of(launch))
    found = ranks or launch.given or _ranks_of_nodes(job, launch, local)
    job.set_timeout(FOR_EVER)  # the first process may be busy with the job before
    text = job.get("work").decode()
    job.set_timeout(START)
    if text == OVER:
        yield None
        return
    work = Work.of(text)
    starts = found if ranks is None and launch.given is None else Ranks(0, 1)
    with (
        _started(launch, launch, starts) as children,
        joined(found, launch.address, job, backend=work.backend, alive=lambda: _require(children)) as group,
    ):
        yield group, work


def dismiss(environment: Mapping[str, str] = os.environ) -> None:
    """Tell those that torchrun has started that there are no more jobs; for the process of rank 0."""
    launch = launch_of(environment, rank=0, world_size=1, url="env://")
    if launch.given is not None and launch.given.size > 1 and launch.leads:
        with contextlib.suppress(RuntimeError):
            _next_job(_store_of(launch)).set("work", OVER)


def _store_of(launch: Launch) -> "TCPStore":
    key = (launch.address, launch.port)
    if key not in _stores:
        _stores[key] = open_store(launch.address, launch.port, serve=launch.leads and not launch.hosted)
    return _stores[key]


def _next_job(store: "TCPStore") -> "PrefixStore":
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # noqa: PLC0415 (not in every build)

    global _jobs  # noqa: PLW0603 (all processes count the jobs of a sweep alike)
    _jobs += 1
    return PrefixStore(f"job{_jobs}", store)


def _ranks_of_nodes(job: "PrefixStore", launch: Launch, local: int) -> Ranks:
    """Return the ranks of a node's first process; nodes need not have equally many."""
    job.set(f"node{launch.node}", str(local))
    try:
        counts = [int(job.get(f"node{node}")) for node in range(launch.num_nodes)]
    except RuntimeError:
        raise PeerLostError(
            f"impl.setup.world_size={launch.num_nodes}: not all nodes have come within {START}"
        ) from None
    return Ranks(sum(counts[: launch.node]), sum(counts), 0, local)


@contextmanager
def _started(launch: Launch, meeting: Launch, first: Ranks) -> Iterator[list[SpawnProcess]]:
    """Start the other processes of a node whose first has the ranks ``first``, unless somebody else starts them."""
    number = 0 if launch.given else first.local_size - 1
    context = get_context("spawn")
    children: list[SpawnProcess] = []
    for local_rank in range(1, number + 1):
        ranks = replace(first, rank=first.rank + local_rank, local_rank=local_rank)
        node = max(launch.node, 1)  # of any node but the first: it does not serve the store
        arguments = (replace(meeting, node=node), ranks, _jobs)
        process = context.Process(target=_child, args=arguments, name=f"rank {ranks.rank}")
        process.start()
        children.append(process)
    try:
        yield children
    finally:
        for process in children:
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()


def _child(launch: Launch, ranks: Ranks, job: int) -> None:
    global _jobs  # noqa: PLW0603
    _jobs = job - 1
    from fullbatch.app.worker import follow  # noqa: PLC0415 (imports this module)

    os._exit(follow(launch, ranks) or 0)  # not waiting for threads of libraries


def _require(children: list[SpawnProcess]) -> None:
    for process in children:
        if process.exitcode is not None:
            raise PeerLostError(
                f"the process of {process.name} has ended while starting, with status {process.exitcode}"
            )
