"""Fair timings: all contenders take turns in one process, and ratios are taken within a turn."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fullbatch.runtime.device import describe


@dataclass(frozen=True)
class Case:
    """Something to time that goes through ``samples`` pictures."""

    name: str
    run: Callable[[], object]
    samples: int


@dataclass(frozen=True)
class Timing:
    """``ratio`` is the time by that of the group's first case, both per sample: the median over the turns."""

    group: str
    name: str
    samples_per_second: float
    ratio: float


def measure(group: str, cases: Sequence[Case], turns: int, device: torch.device) -> list[Timing]:
    """Time all cases once in each turn, after one for warming up."""
    for case in cases:
        seconds(case.run, device)
    times = [[seconds(case.run, device) / case.samples for case in cases] for _ in range(turns)]
    return [
        Timing(
            group,
            case.name,
            1 / statistics.median(turn[number] for turn in times),
            statistics.median(turn[number] / turn[0] for turn in times),
        )
        for number, case in enumerate(cases)
    ]


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the time of one call, the device's work included."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def machine(device: torch.device) -> str:
    """Return hardware and versions in words."""
    return f"{describe(device)}, Python {platform.python_version()}, {platform.machine()}, {_processor()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else ()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def show(timings: Sequence[Timing], console: Console) -> None:
    """Print a table a group."""
    for group in dict.fromkeys(timing.group for timing in timings):
        table = Table("", "pictures/s", "time / first row", title=group)
        for timing in timings:
            if timing.group == group:
                table.add_row(timing.name, f"{timing.samples_per_second:,.0f}", f"{timing.ratio:.2f}")
        console.print(table)


def write(path: Path, timings: Sequence[Timing], facts: dict[str, float], device: torch.device) -> None:
    """Write all of it as JSON."""
    content = {"machine": machine(device), "timings": [asdict(timing) for timing in timings], **facts}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
