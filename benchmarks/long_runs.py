"""Measure what grows with the length of a run: time per step, memory, open files.

    python benchmarks/long_runs.py [--steps 1000 8000] [--jobs 40]

Runs softmax regression on 60 digits, whose steps take milliseconds, in processes of their own, with a checkpoint after
every step. Prints for each number of steps the time per step, and the slope of the resident memory between the 500th
and the last step; then the open files during a sweep of short jobs in one process.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).parent.parent / "train_with_gradient_descent.py"
TINY = (
    *("data=digits", "data.size=60", "data.valid_size=40", "data.batch_size=20", "model=linear", "hyp=fb1", "seed=1"),
    *("hyp.warmup=1", "hyp.scheduler=", "impl.device=cpu", "impl.threads=1"),
)


def watch(*overrides: str, folder: Path) -> Iterator[tuple[int, float, int]]:
    """Run the script in ``folder``; yield steps in the table, resident memory in MiB and open files twice a second."""
    output = (folder / "output.txt").open("w")
    command = [sys.executable, str(SCRIPT), *TINY, *overrides]
    process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    status = Path(f"/proc/{process.pid}")
    while process.poll() is None:
        time.sleep(0.5)
        try:
            memory = next(line for line in (status / "status").read_text().splitlines() if line.startswith("VmRSS"))
            files = len(list((status / "fd").iterdir()))
        except (OSError, StopIteration):
            continue
        tables = sorted(folder.glob("outputs/**/table_*_convergence_results.csv"))
        steps = tables[-1].read_bytes().count(b"\n") - 1 if tables else 0
        yield steps, int(memory.split()[1]) / 1024, files
    if process.returncode:
        raise SystemExit((folder / "output.txt").read_text())


def measure_steps(steps: int) -> None:
    """Print time per step, slope of the memory, and open files of one run."""
    with tempfile.TemporaryDirectory() as folder:
        observations = np.array(list(watch(f"hyp.steps={steps}", folder=Path(folder))))
        (table,) = Path(folder).glob("outputs/**/table_*_convergence_results.csv")
        lines = [line.split("\t") for line in table.read_text().splitlines()]
    running = observations[(observations[:, 0] > 0) & (observations[:, 0] < steps)]
    seconds = (len(running) - 1) * 0.5 / (running[-1, 0] - running[0, 0])
    own = np.array([float(line[lines[0].index("train_time")]) for line in lines[1:]])
    late = running[running[:, 0] >= min(500, steps / 2)]
    slope = np.polyfit(late[:, 0], late[:, 1], 1)[0]
    files = f"{late[:, 2].min():.0f} to {late[:, 2].max():.0f} open files"
    memory = f"memory {late[0, 1]:.1f} to {late[-1, 1]:.1f} MiB, {1000 * slope:.2f} MiB per 1,000 steps"
    print(f"{steps:6,} steps: {1e3 * seconds:.2f} ms per step ({1e3 * np.median(own):.2f} ms without saving)")
    print(f"    {memory}; {files}", flush=True)


def measure_sweep(jobs: int) -> None:
    """Print memory and open files at the start and at the end of a sweep."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = ",".join(map(str, range(jobs)))
        observations = np.array(list(watch(f"seed={seeds}", "hyp.steps=5", "-m", folder=Path(folder))))
    started = observations[observations[:, 0] > 0]
    first, last = started[len(started) // 10], started[-2]
    print(f"{jobs} jobs: open files {first[2]:.0f} to {last[2]:.0f}, memory {first[1]:.1f} to {last[1]:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 8000])
    parser.add_argument("--jobs", type=int, default=40)
    arguments = parser.parse_args()
    for steps in arguments.steps:
        measure_steps(steps)
    measure_sweep(arguments.jobs)


if __name__ == "__main__":
    main()
