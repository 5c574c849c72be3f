"""Exit statuses of the commands."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """How a command ended; after signal n the status is 128 + n, as in shells."""

    DONE = 0
    FAILED = 1
    """An unexpected error."""
    REFUSED = 1
    """Hydra refused the command line."""
    MISTAKE = 2
    """A mistake in the settings or in a file, or an error of the file system."""
    DIVERGED = 3
    LOST = 4
    """Another process of the run ended early."""
    INTERRUPTED = 130


def ends_sweep(status: int) -> bool:
    """Return whether a job that ended with ``status`` ends its sweep, too: after a signal or a lost process."""
    return status == ExitStatus.LOST or status >= 128
