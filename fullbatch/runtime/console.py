"""Standard output and standard error of a command, which may be closed or full while it runs."""

import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


@contextmanager
def console_streams(*, survive_hangup: bool = False) -> Iterator[None]:
    """Make standard output and standard error accept everything while the context is active.

    - What cannot be written is dropped, see ``stream_error``: a command goes on without its terminal.
    - Characters that the encoding lacks are written as escapes (``\\xe9``).
    - Streams that are closed are replaced by the null device, so that no other file gets their descriptor.

    Streams other than those of the process, such as a notebook's, stay as they are.

    Args:
        survive_hangup: also ignore SIGHUP, which is sent when the terminal is closed, unless it has another handler.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    streams, sys.stdout, sys.stderr = (sys.stdout, sys.stderr), _tolerant(sys.stdout, 1), _tolerant(sys.stderr, 2)
    in_main_thread = threading.current_thread() is threading.main_thread()
    hangup_ends = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL  # Windows has none
    ignores_hangup = survive_hangup and in_main_thread and hangup_ends
    if ignores_hangup:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which child processes inherit
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
        if ignores_hangup:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)


def output_is_lost() -> bool:
    """Return whether standard output lacks something that could not be written, and print why.

    Where its reader has ended (``| head``), nothing is lost.
    """
    sys.stdout.flush()
    error = stream_error(sys.stdout)
    if error is None or error.errno in (errno.EPIPE, errno.EIO):
        return False
    sys.stderr.write(f"standard output: {str(error.strerror).lower()}\n")
    return True


def stream_error(stream: Any) -> OSError | None:
    """Return the last error of writing to one of the ``console_streams``; None without one, and for other streams."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Descriptor) else None


class _Descriptor(io.FileIO):
    """A file descriptor that drops what it cannot write: the terminal is closed, a pipe broken or a disk full."""

    error: OSError | None = None
    """The last error."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a descriptor that does not block, and is not ready
                select.select([], [self], [])
            return written
        except OSError as error:
            self.error = error
            return len(data)


def _tolerant(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:
        return open(number, "w", encoding="utf-8", closefd=False)  # of the null device
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if type(raw) is not io.FileIO or raw.fileno() != number:
        return stream
    tolerant = io.BufferedWriter(_Descriptor(number, "w", closefd=False))
    by_line = bool(stream.line_buffering) or raw is buffer  # python -u
    return io.TextIOWrapper(tolerant, stream.encoding, "backslashreplace", line_buffering=by_line)
