"""Fair timings: all cases take turns in one process, and ratios are computed within a turn."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fullbatch.runtime.device import describe


@dataclass(frozen=True)
class Case:
    """A function to time that processes ``samples`` images.

    ``dtype`` is that of a gradient's products, if their rate is to be compared with the limits of the device. A case
    that ``may_fail`` is skipped with a message where it cannot be compiled.
    """

    name: str
    run: Callable[[], object]
    samples: int
    dtype: torch.dtype | None = None
    may_fail: bool = False


@dataclass(frozen=True)
class Title:
    """The title of a table; ``model`` is empty if there is none."""

    group: str
    model: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.group}: {', '.join(filter(None, (self.model, f'blocks of {self.batch_size}')))}"


@dataclass(frozen=True)
class Timing:
    """One row of a table.

    ``ratio`` is the time per sample relative to the first case of the table, the median over the turns. ``seconds`` are
    the times of all turns. The shares are relative to the rates of the model's layers alone, and of matrix products, in
    ``dtype``.
    """

    title: Title
    name: str
    samples: int
    seconds: tuple[float, ...]
    ratio: float
    dtype: torch.dtype | None = None
    of_layers: float | None = None
    of_peak: float | None = None

    @property
    def samples_per_second(self) -> float:
        """Median over the turns."""
        return self.samples / statistics.median(self.seconds)


def measure(title: Title, cases: Sequence[Case], turns: int, device: torch.device) -> list[Timing]:
    """Time all cases once in each turn, after a warm-up call."""
    cases = [case for case in cases if _works(case, device)]
    times = [[seconds(case.run, device) for case in cases] for _ in range(turns)]

    def ratio(number: int) -> float:
        first = cases[0].samples / cases[number].samples
        return statistics.median(turn[number] / turn[0] * first for turn in times)

    return [
        Timing(title, case.name, case.samples, tuple(turn[number] for turn in times), ratio(number), case.dtype)
        for number, case in enumerate(cases)
    ]


def _works(case: Case, device: torch.device) -> bool:
    try:
        seconds(case.run, device)
    except Exception as error:  # compilers raise whatever their tools do
        if not case.may_fail:
            raise
        reason = next(filter(None, str(error).strip().splitlines()), type(error).__name__)
        Console().print(f"{case.name}: not possible here ({reason})", highlight=False, markup=False)
        return False
    return True


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the time of one call, including the work of the device."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def machine(device: torch.device) -> str:
    """Return a description of hardware and versions."""
    return f"{describe(device)}, Python {platform.python_version()}, {platform.machine()}, {_processor()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else ()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def show(timings: Sequence[Timing], console: Console) -> None:
    """Print one table per title."""
    for title in dict.fromkeys(timing.title for timing in timings):
        rows = [timing for timing in timings if timing.title == title]
        shares = any(row.of_peak is not None for row in rows)
        more = ("of the layers alone", "of the matrix peak") if shares else ()
        table = Table("", "images/s", "time / first row", *more, title=str(title))
        for row in rows:
            values = [percent(row.of_layers), percent(row.of_peak)] if shares else []
            table.add_row(row.name, f"{row.samples_per_second:,.0f}", f"{row.ratio:.2f}", *values)
        console.print(table)


def percent(share: float | None) -> str:
    """Return a share as a percentage, or an empty string."""
    return "" if share is None else f"{share:.0%}"


def write(path: Path, timings: Sequence[Timing], device: torch.device, **more: Any) -> None:
    """Write all results as JSON."""
    rows = [
        {**asdict(timing.title), **asdict(timing), "samples_per_second": timing.samples_per_second}
        for timing in timings
    ]
    for row in rows:
        del row["title"]
        row["dtype"] = None if row["dtype"] is None else str(row["dtype"]).removeprefix("torch.")
    hardware = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    content = {"machine": machine(device), "hardware": hardware, "versions": versions, "arguments": sys.argv[1:]}
    path.write_text(json.dumps({**content, **more, "timings": rows}, indent=2) + "\n", encoding="utf-8")
