"""Freed memory stays with the process: counted in page faults, which do not depend on how busy the machine is."""

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
    piece = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(piece, 1, size)
    libc.free(piece)

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments: str) -> int:
    found = subprocess.run([sys.executable, "-c", ALLOCATE, *arguments], capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_what_is_freed_is_used_again_without_new_pages() -> None:
    pages = (64 << 20) // 4096
    assert page_faults() > pages  # the kernel gives new pages (perhaps large ones) every time
    assert page_faults("keep") < pages // 10
