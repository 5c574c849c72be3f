"""The cores and the memory that a process may use, in made-up trees of /proc and /sys."""

import os
from pathlib import Path

import pytest

from fullbatch.runtime import resources
from fullbatch.runtime.resources import (
    available_cores,
    available_memory,
    default_threads,
)

MIB = 1 << 20
V1, V2 = "4:memory:/a/b\n1:cpu,cpuacct:/a/b\n0::/\n", "0::/a/b\n"
"""/proc/self/cgroup of a process in the group /a/b."""


def write_groups(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Write the control groups of a process and 8 MiB of available memory; return ``root``."""
    meminfo = "MemTotal: 9000000 kB\nMemFree: 1024 kB\nMemAvailable: 8192 kB\n"
    proc = {"proc/self/cgroup": groups, "proc/meminfo": meminfo}
    for name, content in {**proc, **{f"sys/fs/cgroup/{name}": content for name, content in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("", {}, 8),
        (V2, {}, 8),
        (V2, {"a/b/cpu.max": "max 100000"}, 8),
        (V2, {"a/b/cpu.max": "350000 100000"}, 3),
        (V2, {"a/b/cpu.max": "50000 100000"}, 1),
        (V2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2),  # of the group around it
        (V2, {"cpu.max": "200000 100000"}, 2),  # a container, whose root this group is
        (V2, {"unified/a/b/cpu.max": "200000 100000"}, 2),
        ("0::/../other\n", {"cpu.max": "200000 100000", "other/cpu.max": "100000 100000"}, 2),
        (V2, {"a/b/cpu.max": "1600000 100000"}, 8),
        (V2, {"a/b/cpu.max": "damaged"}, 8),
        (V1, {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n"}, 8),
        (V1, {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/a/b/cpu.cfs_period_us": "50000\n"}, 4),
        (V1, {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
)
def test_cores_are_those_of_the_affinity_within_quotas(
    tmp_path: Path, groups: str, files: dict[str, str], cores: int
) -> None:
    root = write_groups(tmp_path, groups, files)
    assert available_cores(root) == default_threads(root) == cores


@pytest.mark.parametrize(
    ("variable", "threads"), [("3", 3), ("1", 1), ("2,4", 2), ("", 8), ("0", 8), ("-2", 8), ("many", 8), ("64", 64)]
)
def test_a_positive_number_of_openmp_threads_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert default_threads(tmp_path) == threads


@pytest.mark.parametrize(
    ("groups", "files", "mib"),
    [
        ("", {}, 8),
        (V2, {"a/b/memory.max": "max", "a/b/memory.current": "1000"}, 8),
        (V2, {"a/b/memory.max": str(6 * MIB), "a/b/memory.current": str(4 * MIB)}, 2),
        (V2, {"a/memory.max": str(6 * MIB), "a/memory.current": str(5 * MIB)}, 1),
        (
            V2,
            {
                "a/b/memory.max": str(6 * MIB),
                "a/b/memory.current": str(5 * MIB),
                "a/b/memory.stat": f"anon 7\ninactive_file {3 * MIB}\n",  # the page cache does not count
            },
            4,
        ),
        (V2, {"a/b/memory.max": str(3 * MIB), "a/b/memory.current": str(4 * MIB)}, 0),
        (V1, {"memory/a/b/memory.limit_in_bytes": str(1 << 62), "memory/a/b/memory.usage_in_bytes": "5"}, 8),
        (V1, {"memory/memory.limit_in_bytes": str(6 * MIB), "memory/memory.usage_in_bytes": str(MIB)}, 5),
    ],
)
def test_memory_is_what_is_available_within_limits(
    tmp_path: Path, groups: str, files: dict[str, str], mib: int
) -> None:
    assert available_memory(write_groups(tmp_path, groups, files)) == mib * MIB


def test_memory_is_measured_or_assumed_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_memory() > MIB
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 3, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert available_memory(tmp_path) == 3 * 4096

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    assert available_memory(tmp_path) == resources.DEFAULT_MEMORY
