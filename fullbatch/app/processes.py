"""The processes of one job: they are started, or wait for the job, and end together.

The process of rank 0 is the main one: the user started it, or it is the first of torchrun's. It alone writes files and
logs. The others are workers and evaluate their share. A process that was started with a command line composes its own
configuration; one that another process of the run has started receives it through the pipe to its parent.
"""

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from fullbatch.app.identity import content_hash
from fullbatch.runtime.device import find_device
from fullbatch.runtime.parents import end_with_parent
from fullbatch.runtime.peer_monitor import GRACE_SECONDS, PeerLostError
from fullbatch.runtime.process_group import Group, join_group
from fullbatch.runtime.ranks import Launch, Ranks, launch_of, started_by_torchrun
from fullbatch.runtime.rendezvous import (
    NO_TIMEOUT,
    START_TIMEOUT,
    NetworkRendezvous,
    PrivateRendezvous,
    Rendezvous,
    look_up,
    private_rendezvous,
)
from fullbatch.settings import Impl
from fullbatch.settings.impl import Distributed
from fullbatch.settings.parse import flatten

log = logging.getLogger(__name__)

OF_ONE_PROCESS = {f"impl.setup.{key}" for key in ("rank", "processes_per_node", "url", "MASTER_ADDR", "MASTER_PORT")}
"""Keys in which the processes of a run may differ."""
_jobs = itertools.count()

RunWorker = Callable[[dict[str, Any], str, Ranks, Rendezvous], int]
"""What a worker process runs, with the configuration, the backend, and where the processes meet; returns its status."""


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
def join_processes(
    launch: Launch, impl: Impl, tree: dict[str, Any], run_worker: RunWorker, status: Callable[[], int]
) -> Iterator[Group]:
    """Join the processes of a job; those of this machine are started, unless a launcher has started them.

    Args:
        launch: how the processes are started.
        impl: the settings of the device and the backend.
        tree: the configuration of the job.
        run_worker: what the processes run that this one starts.
        status: returns the exit status of this process, when it leaves.

    Raises ``PeerLostError`` where the others do not start.
    """
    local = launch.given.local_size if launch.given else local_processes(impl)
    if (launch.given.size if launch.given else max(launch.num_nodes, local)) == 1:
        yield Group(launch.given or Ranks(0, 1))
        return
    assert isinstance(impl.setup, Distributed)
    backend = impl.setup.backend if find_device(impl.device).type == "cuda" else "gloo"
    with ExitStack() as stack:
        rendezvous: Sequence[Rendezvous]
        if launch.given is None and launch.num_nodes == 1:
            ranks, rendezvous = Ranks(0, local, 0, local), stack.enter_context(private_rendezvous(local))
        else:
            network = _next_rendezvous(launch)
            ranks = launch.given or _ranks_of_node(network, launch, local)
            rendezvous = [network, *[replace(network, serve=False)] * (local - 1)]
        log.info("%d processes, %s", ranks.size, backend)
        work = partial(run_worker, tree, backend)
        children = stack.enter_context(_started(() if launch.given else rendezvous[1:], ranks, work))
        group = join_group(ranks, rendezvous[0], backend=backend, check=partial(_require, children), status=status)
        yield stack.enter_context(group)


def require_equal_settings(tree: Mapping[str, Any], group: Group) -> None:
    """Raise ``ValueError`` in the main process, and end the others, where processes were started with other settings.

    Each process has composed its own configuration, or received it from the process that started it. Only hashes of
    the values travel.
    """
    settings = {key: value for key, value in flatten(tree).items() if key not in OF_ONE_PROCESS}
    hashes = {key: content_hash(value) for key, value in settings.items()}
    with group.raise_together():
        expected = json.loads(group.broadcast(json.dumps(hashes).encode()))
        if keys := sorted(key for key in hashes.keys() | expected.keys() if hashes.get(key) != expected.get(key)):
            listed = ", ".join(keys[:5])
            raise ValueError(f"{listed}: not as in process 0; start all processes with the same command line")


def _next_rendezvous(launch: Launch) -> NetworkRendezvous:
    """Return where the processes of the next job meet; all processes count the jobs of a sweep alike."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    serve = launch.is_main and not launch.hosted
    return NetworkRendezvous(launch.address, launch.port, f"attempt{attempt}/job{next(_jobs)}", serve)


def _ranks_of_node(rendezvous: NetworkRendezvous, launch: Launch, local: int) -> Ranks:
    """Return the ranks of a node's first process; nodes need not have equally many."""
    store = rendezvous.store()
    store.set(f"node{launch.node}", str(local))
    # the main process may be busy with the job before; the others begin with it
    timeouts = [NO_TIMEOUT, *[START_TIMEOUT] * (launch.num_nodes - 1)]
    counts = [int(look_up(store, f"node{node}", timeout)) for node, timeout in enumerate(timeouts)]
    return Ranks(sum(counts[: launch.node]), sum(counts), 0, local)


@contextmanager
def _started(
    rendezvous: Sequence[Rendezvous], first: Ranks, work: Callable[[Ranks, Rendezvous], int]
) -> Iterator[list[SpawnProcess]]:
    """Start a process for each rendezvous, with the ranks after ``first``."""
    context = get_context("spawn")
    children: list[SpawnProcess] = []
    for local_rank, place in enumerate(rendezvous, 1):
        ranks = replace(first, rank=first.rank + local_rank, local_rank=local_rank)
        arguments = (os.getpid(), work, ranks, place)
        children.append(context.Process(target=_run_child, args=arguments, name=f"rank {ranks.rank}"))
        children[-1].start()
        if isinstance(place, PrivateRendezvous):
            place.close()
    try:
        yield children
    finally:
        for process in children:
            process.join(GRACE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()


def _run_child(parent: int, work: Callable[[Ranks, Rendezvous], int], ranks: Ranks, rendezvous: Rendezvous) -> None:
    end_with_parent(parent)
    os._exit(work(ranks, rendezvous))  # does not wait for threads of libraries


def _require(children: list[SpawnProcess]) -> None:
    for process in children:
        if process.exitcode is not None:
            raise PeerLostError(f"the process of {process.name} ended while starting, with status {process.exitcode}")
