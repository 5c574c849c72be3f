"""The runs whose files are kept in ``tests/golden/old``, and the script that made these files with the code of then.

    git worktree add /fullbatch 903ccff
    python tests/old_files.py /fullbatch /launch     # writes tests/golden/old; both folders can be removed afterwards

``tests/golden/old`` is a launch folder in which some runs were stopped, beside tables of the same runs at full length:

- ``checkpoints/momentum.pth``: killed in step 3 of 4, so the checkpoint is that after step 2.
- ``checkpoints/search.pth``: the same with a line search on constant data; the optimizer's state passes the evaluation
  at the accepted point on to the next step.
- ``checkpoints/inside.pth``: stopped by SIGTERM inside step 3, between the blocks.
- ``outputs/2/checkpoint.pth``, ``tables/``: a sweep of four jobs, of which one finished, one diverged, one was stopped
  and one never began, with its ledger and its table of runs.
- ``lmdb/``: two frozen copies of each training image.
- ``checkpoints/plane.landscape``: 3 x 3 points around ``checkpoints/plane.pth``.
- ``expected/``: tables of the complete runs, and of the plane with 5 x 5 points.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

TRAIN, LANDSCAPE = "train_with_gradient_descent.py", "crunch_loss_landscape.py"
GOLDEN = Path(__file__).parent / "golden" / "old"
TINY = (
    "data=digits data.size=60 data.valid_size=40 data.batch_size=20 hyp=fb1 hyp.warmup=0 hyp.steps=4 "
    "impl.device=cpu impl.threads=1 impl.dtype=double impl.accumulation_dtype=double"
).split()
"""In double precision, so that processors that round in another way agree to many digits."""
RUNS = {
    "momentum": "model=linear",
    "search": "model=linear hyp.optim.line_search=wolfe hyp.optim.lr=0.5 data.augmentations_train=",
    "inside": "model=import model.target=small_net:build hyp=gradreg hyp.warmup=0 hyp.scheduler=cosine-decay",
}
SWEEP = [*TINY, "hyp.steps=6", "-m", "name=sweep", "model=linear", "hyp.optim.lr=0.05,3e38,0.1,0.2", "seed=1"]
FROZEN = (
    "model=linear hyp=base_sgd hyp.warmup=0 hyp.steps=4 hyp.train_semi_stochastic=True data.augmentations_train= "
    "data/db=LMDB data.db.path=lmdb data.db.rounds=2"
)
STOPS = {"momentum": (8, signal.SIGKILL), "search": (11, signal.SIGKILL), "inside": (15, signal.SIGTERM)}
"""The number of the gradient in whose computation a signal comes."""
STOPPED_SWEEP = (18 + 15 + 8, signal.SIGTERM)
"""In step 3 of the third job; the second one diverges in its fifth step."""
STOPPED = """
import os, runpy, sys
import torch

calls, number = int(sys.argv[1]), int(sys.argv[2])
sys.argv = sys.argv[3:]
gradient = torch.autograd.grad


def counted(*arguments, **options):
    global calls
    calls -= 1
    if calls == 0:
        os.kill(os.getpid(), number)
    return gradient(*arguments, **options)


torch.autograd.grad = counted
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_line(name: str, checkpoint: str | None = None) -> list[str]:
    """Return the overrides of a run of ``RUNS`` with the checkpoint ``checkpoint``, by default that of its name."""
    return [*TINY, *RUNS[name].split(), "seed=1", f"name={name}", f"impl.checkpoint.name={checkpoint or name}"]


def frozen_line() -> list[str]:
    """Return the overrides of the run on frozen copies."""
    return [*TINY, *FROZEN.split(), "seed=1", "name=frozen"]


def plane_line(num: int) -> list[str]:
    """Return the overrides of the landscape of num x num points."""
    axes = [f"viz.coordinates.{axis}.num={num}" for axis in "xy"]
    return [
        "viz=2d",
        "model=linear",
        "impl.checkpoint.name=plane",
        "impl.device=cpu",
        "impl.threads=1",
        "viz.formats=[csv]",
        *axes,
    ]


def main() -> None:
    """Make the files with the code in the first folder, in the second one, which is new."""
    code, launch = (Path(folder).absolute() for folder in sys.argv[1:])
    launch.mkdir()
    shutil.copy(GOLDEN / "small_net.py", launch)
    expected = launch / "expected"
    expected.mkdir()

    def run(
        overrides: list[str], stop: tuple[int, int] = (0, 0), script: str = "train_with_gradient_descent.py"
    ) -> None:
        command = ["-c", STOPPED, *map(str, stop)] if stop[0] else []
        ended = subprocess.run(
            [sys.executable, *command, str(code / script), *overrides],
            cwd=launch,
            env={**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert ended.returncode in (0, -stop[1], 128 + stop[1]), ended.returncode

    def complete(overrides: list[str], name: str) -> None:
        run([*overrides, f"hydra.run.dir=complete/{name}"])
        shutil.copy(launch / "complete" / name / f"table_{name}_convergence_results.csv", expected / f"{name}.csv")

    for name in RUNS:
        complete(run_line(name, f"complete_{name}"), name)
        run(run_line(name), STOPS[name])
    complete(frozen_line(), "frozen")
    sweep_of_one = [argument.replace("0.05,3e38,0.1,0.2", "0.1") for argument in SWEEP if argument != "-m"]
    complete(sweep_of_one, "sweep")
    shutil.copy(launch / "checkpoints/complete_momentum.pth", launch / "checkpoints/plane.pth")
    run([*plane_line(5), "viz.formats=[csv]", "viz.database_name=complete", "hydra.run.dir=complete"], script=LANDSCAPE)
    shutil.copy(launch / "complete/landscape_complete.csv", expected / "plane.csv")
    run([*plane_line(3), "viz.formats="], script=LANDSCAPE)
    for path in (launch / "tables").iterdir():  # of the runs so far
        path.unlink()
    run([*SWEEP, "hydra.sweep.dir=outputs"], STOPPED_SWEEP)
    with closing(sqlite3.connect(launch / "tables/ledger.sqlite")) as ledger:
        ledger.execute("UPDATE attempts SET host = 'host'")
        ledger.commit()
    keep(launch)


def keep(launch: Path) -> None:
    """Replace the files in ``tests/golden/old`` by those of the launch folder that the tests need."""
    patterns = (
        *("small_net.py", "expected/*.csv", "checkpoints/plane.pth", *(f"checkpoints/{name}.pth" for name in RUNS)),
        *("outputs/2/checkpoint.pth", "tables/[!.]*", "lmdb/*/data.mdb", "checkpoints/plane.landscape/data.mdb"),
    )
    shutil.rmtree(GOLDEN)
    for pattern in patterns:
        for path in launch.glob(pattern):
            kept = GOLDEN / path.relative_to(launch)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, kept)


if __name__ == "__main__":
    main()
