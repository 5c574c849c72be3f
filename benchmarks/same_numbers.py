"""Compare the numbers of this code with those of an older commit, bit for bit.

    python benchmarks/same_numbers.py COMMIT [--only NAME ...] [--keep FOLDER]
    python benchmarks/same_numbers.py --list

COMMIT is checked out into a temporary git worktree. Each case runs the same command lines with both codes on one CPU
thread, each in a folder of its own, and then compares

- all tables (convergence, runs, analysis, landscape), except for the columns that a clock or a path decides,
- the checkpoints: weights, averaged weights and the state of the optimizer.

Some cases are stopped by SIGTERM inside a step and continued; one of them is begun by the old code and continued by the
new one. They are compared with a run that nothing has stopped.

Prints one line per case, ``same`` or the first difference; exits with 1 if there is any. All cases take about three
minutes on one core. ``--keep`` leaves the runs in FOLDER/<case>/old and FOLDER/<case>/new.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
TRAIN, LANDSCAPE = "train_with_gradient_descent.py", "crunch_loss_landscape.py"
SMALL = """
    data=digits data.size=200 data.valid_size=100 data.batch_size=50 hyp.sub_batch=25 model=resnet20 model.width=4
    hyp=fb1 hyp.warmup=2 hyp.steps=4 seed=1 impl.device=cpu impl.threads=1 impl.validate_every_nth_step=2
    impl.checkpoint.name=model hydra.run.dir=run
"""
TIMES = {"train_time", "valid_time", "analysis_time", "avg_step_time", "total_time", "samples_per_second"}
NOT_COMPARED = {*TIMES, "peak_share", "folder"}
TERMINATED = 128 + 15
STOPPED = """
import os, runpy, signal, sys
import torch

calls, script = int(sys.argv[1]), sys.argv[2]
sys.argv = sys.argv[2:]
gradient = torch.autograd.grad


def counted(*arguments, **options):
    global calls
    calls -= 1
    if calls == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return gradient(*arguments, **options)


torch.autograd.grad = counted
runpy.run_path(script, run_name="__main__")
"""
"""Runs a script, which gets SIGTERM when it computes its n-th gradient: always at the same place."""


@dataclass(frozen=True)
class Command:
    """A command line; with ``stop_after``, it is stopped in the computation of that many gradients of sub-batches.

    ``code`` names the code that runs it: "old" or "new"; blank: the one whose turn it is.
    """

    overrides: str
    script: str = TRAIN
    stop_after: int = 0
    code: str = ""

    def run(self, code: Path, folder: Path) -> None:
        """Run it in ``folder``; raise ``RuntimeError`` with its output if it ends in an unexpected way."""
        script = [str(code / self.script), *self.overrides.split()]
        stopped = ["-c", STOPPED, str(self.stop_after)] if self.stop_after else []
        environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, *stopped, *script]
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode != (TERMINATED if self.stop_after else 0):
            raise RuntimeError(f"exit status {ended.returncode} in {folder}:\n{ended.stdout}{ended.stderr}")


def train(overrides: str, **options: Any) -> Command:
    """Return a small run of the training script."""
    return Command(f"{SMALL} {overrides}", **options)


@dataclass(frozen=True)
class Case:
    """What the new code runs; the old code runs the same, unless ``reference`` says otherwise."""

    commands: tuple[Command, ...]
    reference: tuple[Command, ...] = ()

    def commands_of(self, code: str) -> tuple[Command, ...]:
        """Return the commands of the side ``code``, "old" or "new"."""
        return self.reference or self.commands if code == "old" else self.commands


GRADREG = "hyp=gradreg hyp.warmup=2 hyp.scheduler=cosine-decay"
SEMI_STOCHASTIC = """
    data/db=LMDB data.db.path=lmdb data.db.rounds=2 data.augmentations_train= hyp=base_sgd hyp.warmup=2
    hyp.train_semi_stochastic=True
"""
CASES = {
    "gradreg": Case((train(GRADREG),)),
    "fbclip_noise": Case(
        (train("hyp=fbclip hyp.warmup=2 hyp.grad_noise.additive=0.01 hyp.grad_noise.multiplicative=0.01"),)
    ),
    "adam": Case((train("hyp/optim=adam"),)),
    "lbfgs": Case((train("hyp/optim=lbfgs data.augmentations_train="),)),
    "wolfe": Case((train("hyp.optim.line_search=wolfe data.augmentations_train= model.normalization=groupnorm1"),)),
    "sam": Case((train("hyp/optim_modification=SAM"),)),
    "sgd_ema": Case((train("hyp=base_sgd hyp.warmup=2 hyp.evaluate_ema=True"),)),
    "central_differences": Case(
        (train(f"{GRADREG} hyp.grad_reg.implementation=central-differences hyp.grad_reg.acc_strength=0.1"),)
    ),
    "maxup": Case((train("hyp.loss_modification=maxup-2"),)),
    "lmdb": Case((train(SEMI_STOCHASTIC),)),
    "two_processes": Case((train(f"{GRADREG} impl/setup=distributed impl.setup.processes_per_node=2"),)),
    "stopped": Case((train(GRADREG, stop_after=37), train(GRADREG)), reference=(train(GRADREG),)),
    "stopped_search": Case(
        (
            train("hyp.optim.line_search=wolfe data.augmentations_train=", stop_after=20),
            train("hyp.optim.line_search=wolfe data.augmentations_train="),
        ),
        reference=(train("hyp.optim.line_search=wolfe data.augmentations_train="),),
    ),
    "continued_from_old": Case(
        (train(GRADREG, stop_after=37, code="old"), train(GRADREG)), reference=(train(GRADREG),)
    ),
    "edge_of_stability": Case(
        (train("analysis=edge_of_stability analysis.sharpness.every=2 analysis.compute_gradient_noise_scale=True"),)
    ),
    "landscape": Case(
        (
            train("hyp.steps=2"),
            Command(
                "viz=2d impl.checkpoint.name=model viz.coordinates.x.num=3 viz.coordinates.y.num=3 viz.formats=[csv] "
                "impl.device=cpu impl.threads=1 hydra.run.dir=plane",
                LANDSCAPE,
            ),
        )
    ),
}


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Yield a temporary folder with the files of ``commit``."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "old"
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def compare(case: Case, codes: dict[str, Path], folder: Path) -> str | None:
    """Run ``case`` with both codes below ``folder``; return the first difference, None if there is none."""
    for side in codes:
        (folder / side).mkdir(parents=True)
        for command in case.commands_of(side):
            command.run(codes[command.code or side], folder / side)
    old, new = folder / "old", folder / "new"
    paths = [path for pattern in ("**/*.csv", "checkpoints/model.pth") for path in outputs(old, new, pattern)]
    return next(filter(None, (difference_of_files(path, old, new) for path in paths)), None)


def outputs(old: Path, new: Path, pattern: str) -> list[Path]:
    """Return the paths of the files in either folder that match, relative to it."""
    return sorted({path.relative_to(side) for side in (old, new) for path in side.glob(pattern)})


def difference_of_files(path: Path, old: Path, new: Path) -> str | None:
    """Return how a file in ``old`` and ``new`` differs, None if it does not."""
    for side in (old, new):
        if not (side / path).exists():
            return f"{path}: missing in {side.name}"
    compared = compare_tables if path.suffix == ".csv" else compare_checkpoints
    found = compared(old / path, new / path)
    return None if found is None else f"{path}: {found}"


def compare_tables(old: Path, new: Path) -> str | None:
    """Return the first cell in which two tables differ."""
    tables = [list(csv.DictReader(path.read_text().splitlines(), delimiter="\t")) for path in (old, new)]
    columns = [[name for name in (table[0] if table else ()) if name not in NOT_COMPARED] for table in tables]
    if columns[0] != columns[1]:
        return f"columns {sorted(set(columns[0]) ^ set(columns[1])) or 'in another order'}"
    for number, rows in enumerate(zip(*tables, strict=False), 1):
        for name in columns[0]:
            if rows[0][name] != rows[1][name]:
                return f"row {number}, {name}: {rows[0][name]} in old, {rows[1][name]} in new"
    lengths = [len(table) for table in tables]
    return None if lengths[0] == lengths[1] else f"{lengths[0]} rows in old, {lengths[1]} in new"


def compare_checkpoints(old: Path, new: Path) -> str | None:
    """Return the first entry of model, EMA or optimizer state in which two checkpoints differ."""
    states = [torch.load(path, weights_only=True)["state"] for path in (old, new)]
    for state in states:  # the evaluation that a search passes on to the next step, an internal matter
        state["optimizer"]["state"].pop("known", None)
    return next(filter(None, (difference(states[0][k], states[1][k], k) for k in ("model", "ema", "optimizer"))), None)


def difference(old: Any, new: Any, key: str) -> str | None:
    """Return the first entry in which two nested containers of tensors and numbers differ; NaN equals NaN."""
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        kinds = [(tensor.dtype, tuple(tensor.shape)) for tensor in (old, new)]
        if kinds[0] != kinds[1]:
            return f"{key}: {kinds[0]} in old, {kinds[1]} in new"
        same = torch.equal(bits(old), bits(new))
        return None if same else f"{key}: the largest difference is {(old.double() - new.double()).abs().max():.3g}"
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        if old.keys() != new.keys():
            return f"{key}: only one of both has {sorted(map(str, old.keys() ^ new.keys()))}"
        return next(filter(None, (difference(old[name], new[name], f"{key}.{name}") for name in old)), None)
    return None if old == new else f"{key}: {old} in old, {new} in new"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def main() -> int:
    """Compare the cases and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.list:
        print(*CASES, sep="\n")
        return 0
    if options.commit is None:
        parser.error("which commit?")
    num_different = 0
    with tempfile.TemporaryDirectory() as temporary, checked_out(options.commit) as old:
        codes, folder = {"old": old, "new": ROOT}, (options.keep or Path(temporary)).absolute()
        for name in options.only:
            found = compare(CASES[name], codes, folder / name)
            num_different += found is not None
            print(f"{name:20s} {found or 'same'}", flush=True)
    return 1 if num_different else 0


if __name__ == "__main__":
    sys.exit(main())
