"""A process beside that of rank 0: takes part in the job and says nothing, unless it is the only one that can."""

import logging
import os
import traceback
from collections.abc import Mapping
from pathlib import Path

from fullbatch.app.job import RunPaths
from fullbatch.app.processes import Work, following
from fullbatch.app.train import assist, prepare
from fullbatch.data.reading import translate_worker_errors
from fullbatch.runtime.files import format_error
from fullbatch.runtime.logs import quiet_log
from fullbatch.runtime.peer_monitor import LOST, PeerLostError
from fullbatch.runtime.process_group import MISTAKE, Group
from fullbatch.runtime.ranks import Launch, Ranks, launch_of
from fullbatch.runtime.stop_requests import InterruptedWork, Interruption, StopRequests, interruption
from fullbatch.settings.parse import settings_of

log = logging.getLogger(__name__)

FAILED, INTERRUPTED, INTERRUPTED_BY = 1, 130, 128


def follow_all(environment: Mapping[str, str] = os.environ) -> int:
    """Follow the first process of torchrun's through all its jobs, one or those of a sweep; return the worst status."""
    launch, worst = launch_of(environment, rank=0, world_size=1, url="env://"), 0
    while (status := follow(launch)) is not None:
        worst = max(worst, status)
        if status == LOST or status >= INTERRUPTED_BY:
            break  # the others are ending, too
    return worst


def follow(launch: Launch, ranks: Ranks | None = None, local: int = 1) -> int | None:
    """Do this process' part of the next job; return its exit status, None where there is no job; see ``following``."""
    with quiet_log(), interruption() as caught:
        try:
            with following(launch, ranks, local) as found:
                if found is None:
                    return None
                group, work = found
                group.ending.status = _take_part(group, work, caught)
                return group.ending.status
        except PeerLostError as error:
            if not error.reported:
                log.error("%s", error)
            return error.status


def _take_part(group: Group, work: Work, caught: Interruption) -> int:
    try:
        run = settings_of(work.tree)
        folder = Path(work.folder)
        with translate_worker_errors():
            requests = StopRequests(caught, group)
            job = prepare(run, work.tree, RunPaths(folder, folder, folder), group, requests)
            return assist(job, requests)
    except PeerLostError as error:
        if not error.reported:
            log.error("%s", error)
        return error.status
    except (ValueError, OSError, InterruptedWork) as error:
        status = caught.exit_status if isinstance(error, InterruptedWork) else MISTAKE
        return _fail(group, status, format_error(error) if isinstance(error, OSError) else str(error))
    except KeyboardInterrupt:
        return _fail(group, INTERRUPTED, "interrupted")
    except Exception:
        return _fail(group, FAILED, traceback.format_exc())


def _fail(group: Group, status: int, message: str) -> int:
    if group.peer_monitor is not None:
        group.peer_monitor.fail(status, f"process {group.rank} of {group.size}: {message}")
    return status
