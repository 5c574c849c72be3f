"""Settings of the C library's memory allocator (glibc)."""

import ctypes
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)
_SETTINGS = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 << 20))


def keep_freed_memory() -> bool:
    """Make glibc reuse freed memory instead of returning it to the system; return whether it could be set.

    Every block allocates and frees the same activations. By default, glibc returns large pieces to the kernel, which
    fills them with zeros, page by page, when the next block asks for them: 10 to 30 % of the time of a ResNet-20 or
    ResNet-18 block on the CPU (``benchmarks/speed.py --only allocator`` times a plain loop without and with it).
    Results stay bitwise the same.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(option, value) for option, value in _SETTINGS)  # mallopt returns 1 on success


def give_memory_back() -> None:
    """Return this process's free memory to the system; does nothing without glibc.

    For a long stream of blocks: glibc does not always reuse the freed memory of one block for the next. Measured with
    blocks of 6 MiB, the process grew by 6 MiB per block, and this call returned all of it.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
