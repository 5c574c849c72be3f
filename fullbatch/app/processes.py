"""The processes of one job: they are started, or wait for the job, and end together.

The process of rank 0 is the main one: the user started it, or it is the first of torchrun's. It alone composes the
configuration, writes files and logs. The others are workers: they receive the job from it and evaluate their share.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Any

import torch

from fullbatch.runtime.device import find_device
from fullbatch.runtime.peer_monitor import GRACE_SECONDS, PeerLostError
from fullbatch.runtime.process_group import NO_TIMEOUT, START_TIMEOUT, Group, join_group, open_store
from fullbatch.runtime.ranks import Launch, Ranks, launch_of, started_by_torchrun
from fullbatch.settings import Impl
from fullbatch.settings.impl import Distributed

if TYPE_CHECKING:
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not listed

log = logging.getLogger(__name__)

NO_MORE_JOBS = "null"
_num_jobs = 0  # so far; each job of a sweep has its own prefix in the same store
_stores: dict[tuple[str, int], "TCPStore"] = {}  # served as long as this process lives


@dataclass(frozen=True)
class Assignment:
    """What workers receive from the main process.

    Args:
        tree: the configuration.
        folder: of the run.
        backend: of torch.distributed.
    """

    tree: dict[str, Any]
    folder: str
    backend: str


RunWorker = Callable[[Launch, Ranks, int], int | None]
"""What a worker process runs, with the number of its job; returns the exit status."""


def launch_from(impl: Impl, environment: Mapping[str, str] = os.environ) -> Launch:
    """Return how this process takes part in a run; ``ValueError`` where settings and environment contradict."""
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
    """Return how many processes a node starts: one per visible GPU; on CPUs ``impl.setup.processes_per_node``."""
    device = find_device(impl.device)
    if device.type == "cuda":
        return torch.cuda.device_count() if device.index is None else 1
    number = impl.setup.processes_per_node if isinstance(impl.setup, Distributed) else 1
    if device.type != "cpu" and number > 1:
        raise ValueError(f"impl.setup.processes_per_node={number}: one process on {device.type}; more with device=cpu")
    return max(number, 1)


@contextmanager
def start_workers(
    launch: Launch,
    impl: Impl,
    tree: dict[str, Any],
    folder: str,
    run_worker: RunWorker,
    status: Callable[[], int],
) -> Iterator[Group]:
    """Start the workers of a job, or send it to those that wait for it, and join them; for the main process.

    Args:
        launch: how the processes are started.
        impl: the settings of the device and the backend.
        tree: the configuration of the job.
        folder: of the run.
        run_worker: what the processes run that this one starts.
        status: returns the exit status of this process, when it leaves.

    Raises ``PeerLostError`` where they do not start.
    """
    if launch.given is not None and launch.given.size == 1:
        yield Group(launch.given)
        return
    local = launch.given.local_size if launch.given else local_processes(impl)
    if launch.given is None and launch.num_nodes == 1 and local == 1:
        yield Group()
        return
    assert isinstance(impl.setup, Distributed)
    backend = impl.setup.backend if find_device(impl.device).type == "cuda" else "gloo"
    store = _store_of(launch)
    number, job = _next_job(store)
    ranks = launch.given or _ranks_of_node(job, launch, local)
    job.set("assignment", json.dumps(vars(Assignment(tree, folder, backend))))
    meeting = replace(launch, port=store.port)
    with _started(meeting, ranks, run_worker, number) as children:
        log.info("%d processes, %s", ranks.size, backend)
        with join_group(
            ranks, launch.address, job, backend=backend, check=lambda: _require(children), status=status
        ) as group:
            yield group


@contextmanager
def join_job(
    launch: Launch,
    ranks: Ranks | None,
    local: int,
    run_worker: RunWorker,
    number: int | None,
    status: Callable[[], int],
) -> Iterator[tuple[Group, Assignment] | None]:
    """Join the next job of the main process; yield None where it has no more.

    Args:
        launch: how to reach the main process.
        ranks: of this process; None: the first of its node, which starts the others.
        local: the number of processes of this node.
        run_worker: what the processes run that this one starts.
        number: of the job; None: the next one.
        status: returns the exit status of this process, when it leaves.
    """
    number, job = _next_job(_store_of(launch), number)
    first_of_node = ranks is None and launch.given is None
    ranks = ranks or launch.given or _ranks_of_node(job, launch, local)
    job.set_timeout(NO_TIMEOUT)  # the main process may be busy with the job before
    assignment = json.loads(job.get("assignment"))
    job.set_timeout(START_TIMEOUT)
    if assignment is None:
        yield None
        return
    work = Assignment(**assignment)
    with (
        _started(launch, ranks if first_of_node else Ranks(0, 1), run_worker, number) as children,
        join_group(
            ranks, launch.address, job, backend=work.backend, check=lambda: _require(children), status=status
        ) as group,
    ):
        yield group, work


def shut_down(launch: Launch) -> None:
    """Tell the workers that torchrun has started that there are no more jobs; for the main process."""
    if launch.given is not None and launch.given.size > 1:
        with contextlib.suppress(RuntimeError):
            _next_job(_store_of(launch))[1].set("assignment", NO_MORE_JOBS)


def _store_of(launch: Launch) -> "TCPStore":
    key = (launch.address, launch.port)
    if key not in _stores:
        _stores[key] = open_store(launch.address, launch.port, serve=launch.is_main and not launch.hosted)
    return _stores[key]


def _next_job(store: "TCPStore", number: int | None = None) -> tuple[int, "PrefixStore"]:
    """Return the number of the next job, and where its processes find each other."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # noqa: PLC0415 (not in every build)

    global _num_jobs  # noqa: PLW0603 (all processes count the jobs of a sweep alike)
    _num_jobs = _num_jobs + 1 if number is None else number
    return _num_jobs, PrefixStore(f"job{_num_jobs}", store)


def _ranks_of_node(job: "PrefixStore", launch: Launch, local: int) -> Ranks:
    """Return the ranks of a node's first process; nodes need not have equally many."""
    job.set(f"node{launch.node}", str(local))
    try:
        counts = [int(job.get(f"node{node}")) for node in range(launch.num_nodes)]
    except RuntimeError:
        raise PeerLostError(
            f"impl.setup.world_size={launch.num_nodes}: not all nodes have started within {START_TIMEOUT}"
        ) from None
    return Ranks(sum(counts[: launch.node]), sum(counts), 0, local)


@contextmanager
def _started(launch: Launch, first: Ranks, run_worker: RunWorker, number: int) -> Iterator[list[SpawnProcess]]:
    """Start the other processes of the node whose first process has the ranks ``first``, unless a launcher does."""
    context = get_context("spawn")
    children: list[SpawnProcess] = []
    for local_rank in range(1, 1 if launch.given else first.local_size):
        ranks = replace(first, rank=first.rank + local_rank, local_rank=local_rank)
        node = max(launch.node, 1)  # any node but the first: these processes do not serve the store
        arguments = (run_worker, replace(launch, node=node), ranks, number)
        process = context.Process(target=_exit_as_worker, args=arguments, name=f"rank {ranks.rank}")
        process.start()
        children.append(process)
    try:
        yield children
    finally:
        for process in children:
            process.join(GRACE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()


def _exit_as_worker(run_worker: RunWorker, launch: Launch, ranks: Ranks, number: int) -> None:
    os._exit(run_worker(launch, ranks, number) or 0)  # does not wait for threads of libraries


def _require(children: list[SpawnProcess]) -> None:
    for process in children:
        if process.exitcode is not None:
            raise PeerLostError(f"the process of {process.name} ended while starting, with status {process.exitcode}")
