"""Clusters, without one: submitit's local executor, an imitation of SLURM's commands, and the script for sbatch."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from composing import CONFIG, ROOT
from hydra import compose, initialize_config_dir
from running import SCRIPT, rows_of, run_in_process
from states import assert_equal_states

from fullbatch.results.ledger import Attempt, Ledger, State
from fullbatch.training.checkpoint import load_checkpoint

TINY = [
    *("data=digits", "data.size=60", "data.valid_size=40", "data.batch_size=20", "model=linear", "hyp.warmup=1"),
    *("impl.device=cpu", "impl.threads=1", "seed=1", "impl.checkpoint.save_every_nth_step=100000"),
]
MANY = [*TINY, "hyp.steps=400", "impl.validate_every_nth_step=1000"]
TABLE = "tables/table_fb_digits_runs.csv"


def attempts(folder: Path) -> list[Attempt]:
    path = folder / "tables" / "ledger.sqlite"
    return Ledger(path).attempts() if path.exists() else []


def wait_until(ready: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 300
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate()[0])
        time.sleep(0.05)


def begin(command: list[str], folder: Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def steps_taken(folder: Path) -> int:
    tables = list((folder / "outputs").rglob("table_*_results.csv"))
    return sum(len(rows_of(table)) for table in tables)


def put_on_path(folder: Path, **scripts: str) -> str:
    """Write commands into a folder of their own; return a PATH with it in front."""
    (folder / "bin").mkdir()
    for name, body in scripts.items():
        (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}")
        (folder / "bin" / name).chmod(0o755)
    return f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.slow
@pytest.mark.distributed
def test_a_preempted_job_is_requeued_and_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = ["-m", *MANY, "hyp=fb1"]
    process = begin([sys.executable, str(SCRIPT), *sweep, "hydra/launcher=submitit_local"], tmp_path)
    wait_until(lambda: steps_taken(tmp_path) > 2, process)
    (running,) = attempts(tmp_path)
    assert running.process != process.pid
    os.kill(running.process, signal.SIGUSR2)  # what submitit has SLURM send before it takes a job's place
    shown = process.communicate(timeout=600)[0]
    assert process.returncode == 0, shown
    first, second = attempts(tmp_path)
    assert (first.state, second.state) == (State.INTERRUPTED, State.FINISHED)
    assert re.fullmatch(r"paused (after|inside) step .*", first.message)
    assert first.folder == second.folder
    assert first.process != second.process
    (row,) = rows_of(tmp_path / TABLE)
    log = (first.folder / "log.txt").read_text()
    assert re.search(r"SIGUSR2: .*saving", log)
    assert re.search(r"continuing (after|inside) step .* from", log)
    uninterrupted = tmp_path / "uninterrupted"
    uninterrupted.mkdir()
    assert run_in_process(monkeypatch, uninterrupted, *sweep) == 0
    (expected,) = rows_of(uninterrupted / TABLE)
    assert {key: row[key] for key in ("valid_loss", "train_loss", "configuration")} == {
        key: expected[key] for key in ("valid_loss", "train_loss", "configuration")
    }
    resumed, expected_state = (
        load_checkpoint(one[-1].folder / "checkpoint.pth")["state"]
        for one in (attempts(tmp_path), attempts(uninterrupted))
    )
    assert_equal_states(resumed["model"], expected_state["model"])
    assert_equal_states(resumed["rows"], expected_state["rows"])


SBATCH = """
cp "$1" "$SLURM_IMITATION/submitted.sh"
count=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
export SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_ARRAY_JOB_ID=77
(
    for number in $(seq 0 "$count"); do
        SLURM_ARRAY_TASK_ID=$number SLURM_JOB_ID=7$number bash "$SLURM_IMITATION/submitted.sh"
        touch "$SLURM_IMITATION/ended_$number"
    done
) >"$SLURM_IMITATION/log" 2>&1 &
echo "Submitted batch job 77"
"""
SRUN = """
while [[ $1 == --* ]]; do
    if [[ $1 == --unbuffered ]]; then shift; else shift 2; fi
done
exec "$@"
"""
SACCT = """
echo "JobID|State|NodeList"
for number in 0 1; do
    if [[ -e $SLURM_IMITATION/ended_$number ]]; then state=COMPLETED; else state=RUNNING; fi
    echo "77_$number|$state|node"
done
"""
"""Enough of SLURM for an array of jobs, one after the other on this machine."""


def slurm_sweep(tmp_path: Path, path: str) -> tuple[int, str]:
    """Submit two jobs; return exit status and what was printed."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = ["-m", *TINY, "hyp=fb1", "hyp.steps=3", "hyp.optim.lr=0.1,1e30", "hydra/launcher=slurm_cpu"]
    process = begin([sys.executable, str(SCRIPT), *sweep], tmp_path, PATH=path, SLURM_IMITATION=str(tmp_path))
    shown = process.communicate(timeout=600)[0]
    assert "Traceback" not in shown
    return process.returncode, shown


@pytest.mark.slow
def test_the_options_of_a_sweep_for_slurm(tmp_path: Path) -> None:
    refusing = 'cp "$1" "$SLURM_IMITATION/submitted.sh"; echo "no such account" >&2; exit 1\n'
    status, shown = slurm_sweep(tmp_path, put_on_path(tmp_path, sbatch=refusing, srun=SRUN, sacct=SACCT))
    assert status == 1
    assert "the launcher did not finish every job (" in shown
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", (tmp_path / "submitted.sh").read_text(), re.MULTILINE))
    assert (asked["time"], asked["signal"], asked["open-mode"], asked["requeue"]) == ("240", "USR2@300", "append", "")
    assert (asked["cpus-per-task"], asked["mem"], asked["array"]) == ("4", "8GB", "0-1%2")
    assert not [name for name in asked if name.startswith("gpus")]


@pytest.mark.soak  # submitit asks SLURM for news once a minute
def test_a_sweep_runs_in_an_imitation_of_slurm(tmp_path: Path) -> None:
    status, shown = slurm_sweep(tmp_path, put_on_path(tmp_path, sbatch=SBATCH, srun=SRUN, sacct=SACCT))
    assert status == 3, shown
    assert [attempt.state for attempt in attempts(tmp_path)] == [State.FINISHED, State.DIVERGED]


@pytest.mark.parametrize(("name", "gpus"), [("slurm", 1), ("slurm_cpu", None)])
def test_the_presets_compose(name: str, gpus: int | None) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        launcher = compose("cfg", [f"hydra/launcher={name}"], return_hydra_config=True).hydra.launcher
    assert (launcher.gpus_per_node, launcher.nodes, launcher.max_num_timeout) == (gpus, 1, 1000)
    assert launcher.additional_parameters == {"requeue": True}
    assert launcher._target_.endswith("SlurmLauncher")


@pytest.mark.parametrize(
    ("launcher", "missing", "message"),
    [
        ("joblib", True, r"hydra/launcher=joblib: not installed \(pip install 'fullbatch\[sweep\]'\)"),
        ("slurm_cpu", True, r"hydra/launcher=slurm_cpu: not installed \(pip install 'fullbatch\[slurm\]'\)"),
        ("submitit_slurm", False, r"hydra/launcher=submitit_slurm: there is no srun here"),
        ("loblib", False, r"^hydra/launcher=loblib: did you mean joblib"),
    ],
)
def test_a_missing_launcher_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    launcher: str,
    missing: bool,
    message: str,
) -> None:
    if missing:
        monkeypatch.setattr("fullbatch.app.hydra_cli.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    assert run_in_process(monkeypatch, tmp_path, "-m", *TINY, f"hydra/launcher={launcher}") == 1
    shown = capsys.readouterr().err
    assert re.search(message, shown)
    assert "Traceback" not in shown
    assert not (tmp_path / "outputs").exists()


def test_the_script_for_sbatch_asks_for_what_it_needs() -> None:
    script = ROOT / "train.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script.read_text(encoding="utf-8"), re.MULTILINE))
    assert (asked["requeue"], asked["open-mode"], asked["signal"]) == ("", "append", "B:USR1@300")
    ended = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert (ended.returncode, "usage: sbatch train.sbatch NAME" in ended.stderr) == (1, True)


@pytest.mark.slow
@pytest.mark.distributed
def test_the_script_for_sbatch_requeues_itself_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_on_path(tmp_path, scontrol='echo "$@" >> "$SLURM_SUBMIT_DIR/requeued"\n')
    command = ["bash", str(ROOT / "train.sbatch"), "fbaug_1", *MANY]
    cluster = {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path), "FULLBATCH": str(ROOT)}
    process = begin(command, tmp_path, **cluster)
    wait_until(lambda: steps_taken(tmp_path) > 2, process)
    process.send_signal(signal.SIGUSR1)
    shown = process.communicate(timeout=600)[0]
    assert process.returncode == 0, shown
    assert "paused " in shown
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    process = begin(command, tmp_path, **cluster)
    shown = process.communicate(timeout=600)[0]
    assert process.returncode == 0, shown
    assert "continuing " in shown
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"  # not again
    (row,) = rows_of(tmp_path / TABLE)
    uninterrupted = tmp_path / "uninterrupted"
    uninterrupted.mkdir()
    assert run_in_process(monkeypatch, uninterrupted, "name=fbaug_1", "hyp=fb1", *MANY) == 0
    (expected,) = rows_of(uninterrupted / TABLE)
    assert row["valid_loss"] == expected["valid_loss"]
    assert row["configuration"] == expected["configuration"]
