"""A worker: a process of a run other than the main one. It takes part in the job and writes nothing."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from fullbatch.app.exit_status import ExitStatus, ends_sweep
from fullbatch.app.identity import RunIdentity
from fullbatch.app.job_scope import JobScope, job_scope
from fullbatch.app.paths import RunPaths
from fullbatch.app.prepare import prepare
from fullbatch.app.processes import Assignment, join_job, shut_down
from fullbatch.runtime.process_group import Group
from fullbatch.runtime.ranks import Launch, Ranks, launch_of
from fullbatch.runtime.stop_requests import StopRequests
from fullbatch.settings.parse import parse_tree
from fullbatch.training.trainer import validate_last


def run_under_torchrun(main: Callable[[], int], environment: Mapping[str, str] = os.environ) -> int:
    """Call ``main`` in the first of torchrun's processes, and run the workers' part of its jobs in the others.

    Returns the exit status: that of ``main``, or the largest one of the worker's jobs.
    """
    try:
        launch = launch_of(environment, rank=0, world_size=1, url="env://")
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return ExitStatus.MISTAKE
    if launch.is_main:
        try:
            return main()
        finally:
            shut_down(launch)
    largest: int = ExitStatus.DONE
    while (status := run_worker(launch)) is not None:
        largest = max(largest, status)
        if ends_sweep(status):
            break
    return largest


def run_worker(launch: Launch, ranks: Ranks | None = None, number: int | None = None, local: int = 1) -> int | None:
    """Run this process' part of a job; return its exit status, None where there is no job; see ``join_job``."""
    with job_scope(None) as scope, join_job(launch, ranks, local, run_worker, number, lambda: scope.status) as joined:
        if joined is None:
            return None
        group, assignment = joined
        with scope.errors(group):
            scope.status = _train(group, assignment, scope)
    return scope.status


def _train(group: Group, assignment: Assignment, scope: JobScope) -> int:
    run = parse_tree(assignment.tree)
    paths = RunPaths.of(run, Path(assignment.folder))
    requests = StopRequests(scope.caught, group)
    job = prepare(run, assignment.tree, RunIdentity.of(run, assignment.tree), paths, group, requests)
    if job.training.is_done:
        validate_last(job.training.state, job.training.validate)
        return ExitStatus.DONE
    job.training.trainer(probes=job.probes, request=requests.synchronize).run()
    return ExitStatus.DONE if job.training.is_done else requests.exit_status
