"""Freed memory stays with the process, measured in page faults: these do not depend on the load of the machine."""

import subprocess
import sys

import pytest

ALLOCATE = """
import ctypes, resource, sys
from fullbatch.runtime.allocator import keep_freed_memory

if "keep" in sys.argv:
    assert keep_freed_memory()
size = 64 << 20
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def use():
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(block)

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments: str) -> int:
    ended = subprocess.run([sys.executable, "-c", ALLOCATE, *arguments], capture_output=True, text=True, check=True)
    return int(ended.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_freed_memory_is_reused_without_new_pages() -> None:
    pages = (64 << 20) // 4096
    assert page_faults() > pages  # the kernel provides new pages every time, perhaps large ones
    assert page_faults("keep") < pages // 10
