"""The promised speeds, compared with the measured ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from steps import DIGITS
from timing import Timing, Title

BLOCK = 128
BEST = "best setting: speed relative to the plain loop"
Find = Callable[["Results"], float | None]


class Results:
    """All measured values."""

    def __init__(self, timings: Sequence[Timing], facts: dict[str, float]) -> None:
        self.timings, self.facts = timings, facts

    def rows(self, group: str, model: str, batch_size: int, beginning: str = "") -> list[Timing]:
        """Return the rows of a table whose names start with ``beginning``."""
        title = Title(group, model, batch_size)
        return [timing for timing in self.timings if timing.title == title and timing.name.startswith(beginning)]


@dataclass(frozen=True)
class Promise:
    """A limit for a measured value; ``find`` returns the value, or None if it was not measured."""

    what: str
    find: Find
    limit: float
    at_least: bool = False
    device: str | None = None
    percent: bool = False

    def held(self, value: float) -> bool:
        """Return whether a value, rounded as it is shown, keeps the promise."""
        return round(value, 2) >= self.limit if self.at_least else round(value, 2) <= self.limit

    def format(self, value: float) -> str:
        """Return a value as it is shown."""
        return f"{value:.0%}" if self.percent else f"{value:.2f}"


def faster(group: str, batch_size: int, beginning: str = "") -> Find:
    """Find the best speed among rows whose names start with ``beginning``, relative to the table's first row."""

    def find(results: Results) -> float | None:
        rows = results.rows(group, "resnet18", batch_size, beginning)
        ratios = [row.ratio for row in rows if "alone" not in row.name]
        return 1 / min(ratios) if ratios else None

    return find


def costs(group: str, model: str, name: str) -> Find:
    """Find the time of a row relative to the first row of the table."""

    def find(results: Results) -> float | None:
        return next((row.ratio for row in results.rows(group, model, BLOCK, name) if row.name == name), None)

    return find


def data_path(results: Results) -> float | None:
    """Return the speed of blocks on the device relative to the DataLoader."""
    rows = results.rows("data", "", BLOCK, "on the device")
    return 1 / rows[0].ratio if rows else None


def share(of: str) -> Find:
    """Find the share of a limit that the best bfloat16 row reaches in blocks of 512."""

    def find(results: Results) -> float | None:
        rows = results.rows("gradient", "resnet18", 512, "bfloat16")
        return max((getattr(row, of) or 0.0 for row in rows), default=None)

    return find


def memory(implementation: str) -> Find:
    """Find the memory beyond that of the plain gradient, in copies of the parameters."""
    name = f"memory: resnet18, blocks of {BLOCK}, {implementation}, copies of the parameters beyond plain"
    return lambda results: results.facts.get(name)


def spread(results: Results) -> float | None:
    """Return the largest relative deviation of the time per sample from that with N samples."""
    ratios = [abs(row.ratio - 1) for row in results.rows("scaling", "resnet18", BLOCK)]
    return max(ratios, default=None)


PROMISES = (
    Promise(BEST, faster("gradient", BLOCK), 2.2, at_least=True, device="cpu"),
    Promise("float32: speed relative to the plain loop", faster("gradient", BLOCK, "float32"), 1.15, True, "cpu"),
    Promise(BEST, faster("gradient", BLOCK), 5.0, at_least=True, device="cuda"),
    Promise(f"regularized, blocks of 32, {BEST}", faster("regularized gradient", 32), 8.0, True, "cuda"),
    Promise(
        "bfloat16, blocks of 512: share of the speed of the layers alone", share("of_layers"), 0.6, True, "cuda", True
    ),
    Promise("bfloat16, blocks of 512: share of the matrix peak", share("of_peak"), 0.2, True, "cuda", True),
    Promise("time of a step relative to the minimal loop", costs("overhead", "resnet18", "our step"), 1.03),
    Promise(f"time of a step relative to the minimal loop, {DIGITS}", costs("overhead", DIGITS, "our step"), 1.10),
    *(
        Promise(
            f"regularized, {name}: time relative to the gradient",
            costs("products", "resnet18", f"regularized, {name}"),
            most,
        )
        for name, most in (("forward-differences", 2.1), ("central-differences", 3.1), ("forward-over-reverse", 5.5))
    ),
    *(
        Promise(f"memory, {name}: copies of the parameters beyond plain", memory(name), 3.0)
        for name in ("forward-differences", "central-differences")
    ),
    Promise("data on the device: speed relative to the DataLoader", data_path, 10.0, at_least=True),
    Promise("time per sample with N, 2N and 4N samples: deviation", spread, 0.05, device="cuda", percent=True),
)


def checked(results: Results, device: torch.device, *, fast_bfloat16: bool) -> list[dict[str, object]]:
    """Return one row for each promise that applies to this device and was measured.

    Speeds on CPUs are promised only for those with instructions for bfloat16.
    """
    kind = device.type if fast_bfloat16 else None
    rows: list[dict[str, object]] = []
    for promise in PROMISES:
        value = promise.find(results) if promise.device in (None, kind) else None
        if value is not None:
            limit = ("at least " if promise.at_least else "at most ") + promise.format(promise.limit)
            entry = {"what": promise.what, "measured": value, "shown": promise.format(value), "limit": limit}
            rows.append({**entry, "held": promise.held(value)})
    return rows


def show(rows: Sequence[dict[str, object]], console: Console) -> None:
    """Print them as a table."""
    if not rows:
        return
    table = Table("", "measured", "limit", "", title=f"promises: ResNet-18, blocks of {BLOCK} unless stated otherwise")
    for row in rows:
        table.add_row(str(row["what"]), str(row["shown"]), str(row["limit"]), "kept" if row["held"] else "NOT KEPT")
    console.print(table)
