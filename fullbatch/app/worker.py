"""A worker: a process of a run other than the main one. It takes part in the job and writes nothing."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fullbatch.app.exit_status import ExitStatus
from fullbatch.app.identity import RunIdentity
from fullbatch.app.job_scope import JobScope, job_scope
from fullbatch.app.paths import RunPaths
from fullbatch.app.prepare import prepare
from fullbatch.app.processes import join_processes
from fullbatch.runtime.process_group import Group, join_group
from fullbatch.runtime.ranks import Launch, Ranks
from fullbatch.runtime.rendezvous import Rendezvous
from fullbatch.runtime.stop_requests import StopRequests
from fullbatch.settings import Impl
from fullbatch.settings.parse import parse_tree
from fullbatch.training.trainer import validate_last

DONE_BEFORE = b"done before"
"""What the main process sends first for a job that need not run; nothing for others."""


def run_started_worker(tree: dict[str, Any], backend: str, ranks: Ranks, rendezvous: Rendezvous) -> int:
    """Run the part of a process that another process of the run has started; return the exit status."""
    return _run_worker(tree, lambda status: join_group(ranks, rendezvous, backend=backend, status=status))


def run_launched_worker(tree: dict[str, Any], launch: Launch, impl: Impl) -> int:
    """Run the part of a process that a launcher or the user has started, and of those that it starts."""
    return _run_worker(tree, lambda status: join_processes(launch, impl, tree, run_started_worker, status))


def _run_worker(tree: dict[str, Any], join: Callable[[Callable[[], int]], AbstractContextManager[Group]]) -> int:
    with job_scope(None) as scope, join(lambda: scope.status) as group, scope.errors(group):
        scope.status = _train(tree, group, scope)
    return scope.status


def _train(tree: dict[str, Any], group: Group, scope: JobScope) -> int:
    if group.broadcast(b"") == DONE_BEFORE:
        return ExitStatus.DONE
    run = parse_tree(tree)
    requests = StopRequests(scope.caught, group)
    paths = RunPaths.of(run, Path())  # where the main process writes, a worker does not
    job = prepare(run, tree, RunIdentity.of(run, tree), paths, group, requests)
    if job.training.is_done:
        validate_last(job.training.state, job.training.validate)
        return ExitStatus.DONE
    job.training.trainer(probes=job.probes, request=requests.synchronize).run()
    return ExitStatus.DONE if job.training.is_done else requests.exit_status
