"""Runs of several processes, started as users start them; some processes are killed."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from composing import composed, tree_for
from running import SCRIPT, SMALL, run_in_process, start
from shared_runs import distance
from states import assert_equal_states

from fullbatch.app.processes import launch_from, require_equal_settings
from fullbatch.settings.parse import parse, replace_keys
from fullbatch.training.checkpoint import load_checkpoint
from fullbatch.training.tables import read_table

pytestmark = pytest.mark.distributed
TWO = ["impl/setup=distributed", "impl.setup.processes_per_node=2"]
NAMED = "impl.checkpoint.name=mine"
SOON = 30.0
"""Seconds in which the other processes of a run end when one is gone."""


def children_of(process: int) -> list[int]:
    """Return the processes that a process has started."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for path in tasks for child in path.read_text().split()]


def others_of(process: int) -> list[int]:
    """Return the processes that the main process of a run has started."""
    return [child for child in children_of(process) if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def lives(process: int) -> bool:
    """Return whether a process is alive, and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def saved_at(folder: Path) -> float:
    path = folder / "checkpoints" / "mine.pth"
    return path.stat().st_mtime if path.exists() else 0.0


def started(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start a run, and wait until it has saved."""
    before = saved_at(folder)
    process = start(folder, *SMALL, NAMED, *arguments)
    deadline = time.monotonic() + 600
    while saved_at(folder) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    return lambda *arguments: run_in_process(monkeypatch, tmp_path, *SMALL, *arguments)


def state_of(folder: Path, name: str) -> dict[str, object]:
    state: dict[str, object] = load_checkpoint(folder / "checkpoints" / f"{name}.pth")["state"]
    return state


def run_folders(folder: Path) -> Iterator[Path]:
    return iter(sorted((folder / "outputs").glob("*/*")))


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(script: Callable[..., int], tmp_path: Path) -> None:
    """Without a seed on the command line: it is drawn once."""
    exact = ["impl.dtype=double", "impl.accumulation_dtype=double", "hyp.evaluate_ema=True", "hyp.steps=3"]
    assert script("impl.checkpoint.name=two", *TWO, *exact, "seed=") == 0
    seed = load_checkpoint(tmp_path / "checkpoints" / "two.pth")["seed"]
    assert script("impl.checkpoint.name=one", *exact, f"seed={seed}") == 0
    two, one = state_of(tmp_path, "two"), state_of(tmp_path, "one")
    assert distance(two["model"], one["model"]) < 1e-9
    assert distance(two["ema"], one["ema"]) < 1e-9
    files = [sorted(path.name for path in folder.iterdir()) for folder in run_folders(tmp_path)]
    assert len(files) == 2
    assert files[0] == files[1]
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pth")) == [
        *("one.previous.pth", "one.pth", "two.previous.pth", "two.pth")
    ]
    assert len(read_table(tmp_path / "tables" / "table_fb_digits_runs.csv")) == 2


def listening(processes: list[int]) -> set[tuple[str, int]]:
    """Return the addresses at which processes listen for TCP, in hexadecimal digits, and the ports."""
    sockets = set()
    for process in processes:
        for descriptor in Path(f"/proc/{process}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(descriptor))
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    places = [words[1].split(":") for words in lines if words[3] == "0A" and f"socket:[{words[9]}]" in sockets]
    return {(address, int(port, 16)) for address, port in places}


@contextmanager
def attacked() -> Iterator[tuple[set[tuple[str, int]], list[str]]]:
    """Let another user attack this process and its children; yield where they listen, and the successes."""
    own, seen, successes, ended = listening([os.getpid()]), set[tuple[str, int]](), list[str](), threading.Event()
    command = [sys.executable, str(Path(__file__).parent.parent / "attacking.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as attacker:
        assert attacker.stdin is not None
        assert attacker.stdout is not None

        def watch() -> None:
            while not ended.wait(0.002):
                for place in listening([os.getpid(), *others_of(os.getpid())]) - own - seen:
                    seen.add(place)
                    attacker.stdin.write(f"{place[1]}\n")
                    attacker.stdin.flush()

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield seen, successes
        finally:
            ended.set()
            watcher.join()
            attacker.kill()
            successes += attacker.stdout.readlines()


@pytest.mark.slow
def test_another_user_of_the_machine_changes_nothing(
    script: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the environment says, nothing listens beyond this machine; a job that is done needs no second run."""
    device = next(name for _, name in socket.if_nameindex())
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", device if device != "lo" else "eth0")
    with attacked() as (seen, successes):
        status = script("-m", "hyp.steps=2", *TWO)
    assert seen
    assert {address for address, _ in seen} == {"0100007F"}
    assert successes == []
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    problems = [line for line in shown.err.splitlines() if "the learning rate never exceeds" not in line]
    assert (status, len(problems)) in ((0, 0), (4, 1)), shown.err
    assert script("-m", "hyp.steps=2", *TWO) == 0
    again = capsys.readouterr()
    assert again.out.count("this job has finished before") == (status == 0)
    assert again.err == ""
    assert script("-m", "impl.checkpoint.name=other", "name=other", "hyp.steps=2") == 0
    two, one = read_table(tmp_path / "tables" / "table_fb_digits_runs.csv")
    assert float(two["train_loss"]) == pytest.approx(float(one["train_loss"]), rel=1e-5)


class Sequence:
    """Processes one after the other, the main one first."""

    sent = b""

    def broadcast(self, content: bytes) -> bytes:
        self.sent = self.sent or content
        return self.sent

    def raise_together(self) -> AbstractContextManager[None]:
        return nullcontext()


def test_processes_with_other_settings_are_named() -> None:
    group: Any = Sequence()
    tree = tree_for(*SMALL, "impl/setup=distributed")
    other = replace_keys(tree, {"impl.setup.rank": 1, "impl.setup.url": "tcp://a:1", "hyp.steps": 9, "data.path": "/x"})
    require_equal_settings(tree, group)
    with pytest.raises(ValueError, match=r"^data\.path, hyp\.steps: not as in process 0; .* the same command line$"):
        require_equal_settings(other, group)
    assert b"/x" not in group.sent


@pytest.mark.soak
def test_two_machines_with_different_command_lines(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"impl.setup.url=tcp://127.0.0.1:{server.getsockname()[1]}"
    for steps, expected in (("2", 0), ("3", 2)):
        setup = ["impl/setup=distributed", "impl.setup.world_size=2", url, "impl.setup.processes_per_node=2"]
        second = start(tmp_path, *SMALL, *setup, "impl.setup.rank=1", f"hyp.steps={steps}")
        first = start(tmp_path, *SMALL, *setup, "impl.setup.rank=0", "hyp.steps=2")
        shown, other = (process.communicate(timeout=600)[0] for process in (first, second))
        assert (first.returncode, second.returncode) == (expected, expected), shown + other
        assert shown.count("process 2 of 4: hyp.steps: not as in process 0") == (expected == 2)
        assert ("4 processes, gloo" in shown, other) == (True, "")


@pytest.mark.soak
def test_no_process_outlives_a_killed_one(tmp_path: Path) -> None:
    """Killed at any moment, also before the others have connected; those of a launcher, too."""
    joblib = ["-m", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=3"]
    for arguments, number in ((TWO, 2), (joblib, 4)):
        for delay in (0.0, 1.0, 3.0, 8.0):
            process = start(tmp_path, *SMALL, *arguments, "hyp.steps=100000")
            while len(descendants := children_of(process.pid)) < number:
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(delay)
            descendants = children_of(process.pid)
            process.kill()
            deadline = time.monotonic() + SOON
            while any(map(lives, descendants)):
                assert time.monotonic() < deadline, (arguments, delay)
                time.sleep(0.1)
            process.communicate()


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """A sweep, whose workers go on from job to job; a missing setup is named."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*arguments: str, program: tuple[str, ...] = (str(SCRIPT),)) -> "subprocess.CompletedProcess[str]":
        words = [*command, "--standalone", *program, *SMALL, *arguments]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    ended = run("-m", "impl/setup=distributed", "impl.setup.url=env://", "hyp.steps=1,2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("2 processes, gloo") == 2
    assert ended.stdout.count("done: all") == 2
    assert len(read_table(tmp_path / "tables" / "table_fb_digits_runs.csv")) == 2
    assert len(list(run_folders(tmp_path))) == 1
    ended = run("hyp.steps=1", program=("-m", "fullbatch", "train"))
    assert ended.returncode != 0
    assert ended.stderr.count("impl/setup=single: torchrun started 2 processes; they need impl/setup=distributed") == 1


def test_a_process_of_many_needs_the_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="torchrun started 2 processes; they need impl/setup=distributed"):
        launch_from(parse(composed()).impl, os.environ)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hyp.train_stochastic=True"], r"hyp\.blocks_per_update=1: 2 processes share .*; accepted: multiples of 2"),
        (["hyp.gradient_average=moving"], r"hyp\.gradient_average=moving: .*one process, not 2"),
        (["data=imagefolder", "data.path=nowhere"], r"data\.path=.*nowhere: no such folder"),
    ],
)
def test_a_mistake_is_reported_once(
    script: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert script(*TWO, *arguments) == 2
    shown = capsys.readouterr().err
    assert len(re.findall(message, shown)) == 1
    assert "Traceback" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["first", "second"])
def test_killing_one_of_two_ends_the_other_with_a_message(tmp_path: Path, victim: str) -> None:
    process = started(tmp_path, "hyp.steps=100000", "hyp.scheduler=", *TWO)
    (other,) = others_of(process.pid)
    killed = time.monotonic()
    os.kill(process.pid if victim == "first" else other, signal.SIGKILL)
    shown = process.communicate(timeout=600)[0]  # ends when both have closed it
    assert time.monotonic() - killed < SOON
    assert not lives(other)
    assert shown.count(f"process {int(victim == 'second')} of 2 is gone: it or its machine was killed") == 1
    assert "Traceback" not in shown
    assert process.returncode == (-signal.SIGKILL if victim == "first" else 4)


@pytest.mark.slow
def test_a_save_on_request_does_not_stop_the_run(tmp_path: Path) -> None:
    rare = "impl.checkpoint.save_every_nth_step=100000"
    process = started(tmp_path, "hyp.steps=100000", "hyp.scheduler=", rare, *TWO)
    for _ in range(2):
        before, deadline = saved_at(tmp_path), time.monotonic() + 600
        process.send_signal(signal.SIGUSR1)
        while saved_at(tmp_path) == before:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    os.kill(others_of(process.pid)[0], signal.SIGTERM)  # in any process
    shown = process.communicate(timeout=600)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert "paused " in shown


@pytest.mark.slow
def test_saves_by_the_clock(tmp_path: Path) -> None:
    often = ["impl.checkpoint.save_every_nth_step=100000", "impl.checkpoint.max_minutes=0.001"]
    process = started(tmp_path, "hyp.steps=100000", *often, *TWO)
    for _ in range(3):
        before, deadline = saved_at(tmp_path), time.monotonic() + 600
        while saved_at(tmp_path) == before:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    process.kill()
    process.communicate()


def survive(folder: Path, processes: list[int], events: list[signal.Signals], seed: int) -> str:
    """Start a run again after each event, with the next one of the numbers ``processes``."""
    chance = random.Random(seed)
    steps = f"hyp.steps={6 * max(3, len(events))}"
    numbers = [processes[life % len(processes)] for life in range(len(events) + 1)]
    met = 0
    for event, number in zip(events, numbers, strict=False):
        setup = TWO if number == 2 else []
        process = started(folder, steps, *EXACT, *setup)
        time.sleep(chance.random() / 2)
        others = others_of(process.pid) if process.poll() is None else []
        victim = chance.choice([process.pid, *others])
        if process.poll() is None:
            os.kill(victim, event)
            met += 1
        shown = process.communicate(timeout=600)[0]
        assert "Traceback" not in shown
        load_checkpoint(folder / "checkpoints" / "mine.pth")
    assert met > len(events) // 2
    last = TWO if numbers[-1] == 2 else []
    process = start(folder, *SMALL, NAMED, steps, *EXACT, *last)
    assert "done: all" in process.communicate(timeout=600)[0]
    assert process.returncode == 0
    return steps


EXACT = [
    "impl.dtype=double",
    "impl.accumulation_dtype=double",
    "impl.validate_every_nth_step=3",
    "hyp.evaluate_ema=True",
]
KILL, STOP = signal.SIGKILL, signal.SIGTERM


def assert_one_row_each(folder: Path) -> None:
    assert len(read_table(folder / "tables" / "table_fb_digits_runs.csv")) == 2
    last_life = sorted((folder / "outputs").glob("*/*"))[-2]
    (table,) = last_life.glob("table_*_results.csv")
    assert [row["step"] for row in read_table(table)] == [
        str(row["step"]) for row in state_of(folder, "uninterrupted")["rows"]
    ]


def compare_with_two(folder: Path, steps: str) -> None:
    process = start(folder, *SMALL, "impl.checkpoint.name=uninterrupted", steps, *EXACT, *TWO)
    process.communicate(timeout=600)
    assert process.returncode == 0
    resumed, expected = (state_of(folder, name) for name in ("mine", "uninterrupted"))
    for state in (resumed, expected):
        del state["rng"]  # of the process, which begins with another one each time; a run does not draw from it
    assert_equal_states(resumed, expected)
    assert_one_row_each(folder)


def compare_with_one(script: Callable[..., int], folder: Path, steps: str) -> None:
    assert script("impl.checkpoint.name=uninterrupted", steps, *EXACT) == 0
    for part in ("model", "ema"):
        assert distance(state_of(folder, "mine")[part], state_of(folder, "uninterrupted")[part]) < 1e-9
    assert_one_row_each(folder)


@pytest.mark.slow
def test_kills_and_signals_change_no_bit_of_two_processes(tmp_path: Path) -> None:
    compare_with_two(tmp_path, survive(tmp_path, [2], [KILL, STOP], seed=0))


@pytest.mark.soak
def test_kills_and_signals_of_changing_numbers_of_processes(script: Callable[..., int], tmp_path: Path) -> None:
    compare_with_one(script, tmp_path, survive(tmp_path, [2, 1], [STOP, KILL, STOP, STOP, KILL], seed=1))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_many_kills_and_signals(script: Callable[..., int], tmp_path: Path, seed: int) -> None:
    compare_with_two(tmp_path, survive(tmp_path, [2], 5 * [KILL, STOP], seed))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_many_kills_and_signals_of_changing_numbers(script: Callable[..., int], tmp_path: Path, seed: int) -> None:
    compare_with_one(script, tmp_path, survive(tmp_path, [2, 1, 1, 2], 5 * [STOP, KILL], seed + 10))
