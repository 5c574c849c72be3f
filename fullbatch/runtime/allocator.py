"""The C library's allocator, told to keep the memory of freed tensors for the next ones."""

import ctypes
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)
_SETTINGS = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 << 20))


def keep_freed_memory() -> bool:
    """Let glibc reuse what is freed instead of handing it back to the system; say whether that was possible.

    Every block allocates and frees the same activations. By default glibc returns large pieces to the kernel, which
    fills them with zeros, page by page, when the next block asks for them: 10 to 30 % of the time of a ResNet-20 or
    ResNet-18 block on the CPU (``benchmarks/speed.py --only allocator`` times a plain loop without and with it).
    Results are the same to the bit.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(option, value) for option, value in _SETTINGS)  # 1: done, 0: refused


def give_memory_back() -> None:
    """Give main memory that is free in this process back to the system, where that is glibc's to do.

    Its allocator does not always use the freed memory of one block for the next (measured: 6 MiB more with each block
    of 6 MiB, all of it returned by this call), so a long stream of blocks would fill the memory.
    """
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
