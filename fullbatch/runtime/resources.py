"""The cores and the memory that this process may use: the machine's, within affinity and control groups.

The folder ``root`` holds the system's /proc and /sys. Nothing here imports torch.
"""

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
DEFAULT_MEMORY = 4 << 30
"""Bytes to assume where the system does not report its free memory."""


def available_cores(root: Path = ROOT) -> int:
    """Return how many cores the affinity and the CPU quotas of this process allow, rounded down and at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota / period for quota, period in _cpu_quotas(root) if quota > 0 and period > 0]
    return max(int(min([cores, *quotas])), 1)


def default_threads(root: Path = ROOT) -> int:
    """Return OMP_NUM_THREADS if it is a positive number (the first one of a list), else the available cores."""
    number = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(number) if number.isdecimal() and int(number) > 0 else available_cores(root)


def available_memory(root: Path = ROOT) -> int:
    """Return the bytes of memory that can be allocated without swapping, within the limits of the control groups.

    The page cache counts as available: MemAvailable of /proc/meminfo, and inactive files of a control group.
    """
    fields = _fields(root / "proc/meminfo")
    if "MemAvailable:" in fields:
        available = 1024 * fields["MemAvailable:"]
    else:
        try:
            available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            available = DEFAULT_MEMORY
    return max(min([available, *_memory_left(root)]), 0)


def _cpu_quotas(root: Path) -> Iterator[tuple[int, int]]:
    """Yield quota and period in microseconds; without a quota, it is not positive."""
    for folder in _control_groups(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        yield _number(quota), _number(period)
        yield _number(_read(folder / "cpu.cfs_quota_us")), _number(_read(folder / "cpu.cfs_period_us"))


def _memory_left(root: Path) -> Iterator[int]:
    """Yield the limit of each control group minus what it uses apart from inactive files."""
    for folder in _control_groups(root, "memory"):
        statistics = _fields(folder / "memory.stat")
        for limit, usage, inactive in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, used = _number(_read(folder / limit)), _number(_read(folder / usage))
            if most >= 0 and used >= 0:
                yield most - max(used - statistics.get(inactive, 0), 0)


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, versions 1 and 2, from the innermost outwards."""
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # outside of the control groups that this process sees
            parts = []
        for mount in dict.fromkeys((mounts / controllers, mounts / (controller if controllers else "unified"))):
            yield from (mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int:
    """Return the number; -1 for any other text, such as 'max'."""
    return int(text) if text.isdecimal() else -1


def _fields(path: Path) -> dict[str, int]:
    """Return the numbers after the first word of each line."""
    lines = (line.split() for line in _read(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
