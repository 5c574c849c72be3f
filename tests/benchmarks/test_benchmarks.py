"""The benchmarks run and check their promises."""

import copy
import csv
import importlib
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from composing import ROOT
from PIL import Image
from running import run_in_process
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch import FullBatchObjective, build_model
from fullbatch.landscape.export import write_csv
from fullbatch.landscape.grid import POINT, Axis, Grid
from fullbatch.landscape.surface import Surface
from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.tensors import flatten


class Result(NamedTuple):
    """Exit status and output of a script."""

    status: int
    output: str
    errors: str


Benchmark = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Benchmark:
    """Run a script of benchmarks/ by name in ``tmp_path``; its exit status must be one of ``statuses``."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for processes that it starts
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run_script(name: str, *arguments: str, statuses: tuple[int, ...] = (0,)) -> Result:
        status = run_in_process(monkeypatch, tmp_path, *arguments, script=ROOT / "benchmarks" / f"{name}.py")
        result = Result(status, *capsys.readouterr())
        assert result.status in statuses, result
        return result

    return run_script


@pytest.fixture
def forty_images(tmp_path: Path) -> list[str]:
    """Write forty JPEG images and return the options of data.py that select them."""
    for folder in (tmp_path / split / name for split in ("train", "val") for name in "ab"):
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return ["--path", str(tmp_path), "--samples", "40"]


@pytest.mark.slow
def test_a_database_is_faster_than_files(run: Benchmark, forty_images: list[str]) -> None:
    (ratio,) = re.findall(r"the database is ([\d.]+) times as fast", run("data", *forty_images).output)
    assert float(ratio) > 2


@pytest.mark.slow
def test_the_memory_of_each_way_is_shown(
    run: Benchmark, forty_images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way is measured in a process of its own, which this test replaces by a call."""

    def run_here(command: list[str], **options: bool) -> SimpleNamespace:
        assert command[0] == sys.executable
        assert options == {"check": True, "capture_output": True, "text": True}
        with monkeypatch.context() as patch, redirect_stdout(io.StringIO()) as output:
            patch.setattr(sys, "argv", command[1:])
            runpy.run_path(command[1], run_name="__main__")
        return SimpleNamespace(stdout=output.getvalue())

    monkeypatch.setattr(subprocess, "run", run_here)
    output = run("data", *forty_images, "--memory", "--crop", "--workers", "1").output
    assert re.findall(r"(cached|streamed|whole) +│ +[\d,]+ +│ +[\d,]+", output) == ["cached", "streamed", "whole"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["edge_of_stability", "sharpness"])
def test_the_sharpness_is_measured(run: Benchmark, tmp_path: Path, script: str) -> None:
    """Status 1 is allowed: the run is too short to reach the edge, and the cost may exceed its limit."""
    result = run(script, "--samples", "100", "--steps", "15", "--every", "5", statuses=(0, 1))
    assert not result.errors
    if script == "sharpness":
        (error,) = re.findall(r"largest\s+error\s+([\d.]+)%", result.output)
        assert float(error) <= 1
    else:
        assert len(re.findall(r"median of lr sharpness/2", result.output)) == 2
        assert (tmp_path / "edge_of_stability.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_figure_of_all_optimizers(run: Benchmark, tmp_path: Path) -> None:
    run("optimizers", *"--data digits --samples 50 --evaluations 4 --output figure".split())
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "figure.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["optimizer"] for row in rows} == {"gd", "gd, Wolfe", "L-BFGS", "FISTA", "Adam", "SAM"}
    sam = [float(row["evaluations"]) for row in rows if row["optimizer"] == "SAM"]
    assert sam == [0, 2, 4] * 3  # two gradients per step, three learning rates


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    ["gradient", "gradient --emulated", "accuracy", "accuracy --emulated", "accuracy --emulated --precision float16"],
)
def test_low_precision_is_compared_and_promises_are_checked(run: Benchmark, tmp_path: Path, part: str) -> None:
    """The runs are too short for the promises; the status must agree with the numbers."""
    options = "--samples 20 --seeds 2 --steps 1 --accuracy-steps 1 --json results.json".split()
    result = run("low_precision", "--only", *part.split(), *options, statuses=(0, 1))
    assert not result.errors
    written = json.loads((tmp_path / "results.json").read_text())
    assert "PyTorch" in written["machine"]
    if part.startswith("gradient"):
        differences = [row["relative"] for row in written["gradient"]]
        assert len(differences) == 3
        assert all(0 < difference < 1 for difference in differences)  # rounded, but the same gradient
        kept = max(differences[1:]) <= 0.05
    else:
        single, low, spread = (
            written["accuracy"][name] for name in ("float32", "float16" if "float16" in part else "bfloat16", "spread")
        )
        assert spread == max(max(single) - min(single), 1 / 360)
        kept = abs(sum(low) / 2 - sum(single) / 2) <= spread
    assert result.status == (0 if kept else 1)


LOW_PRECISIONS = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@LOW_PRECISIONS
def test_emulated_products_are_exact_products_of_rounded_numbers(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    rounded_to = importlib.import_module("rounding").Rounded
    torch.manual_seed(0)
    layer, inputs, back = nn.Conv2d(4, 8, 3), torch.randn(16, 4, 9, 9), torch.randn(16, 8, 7, 7)
    reference = copy.deepcopy(layer).to(dtype).double()

    def product(some: nn.Module, inputs: Tensor, back: Tensor) -> list[Tensor]:
        outputs = some(inputs)
        return [outputs.detach(), *torch.autograd.grad(outputs, list(some.parameters()), back)]

    ours = product(rounded_to(layer, dtype), inputs, back)
    for our, exact in zip(ours, product(reference, *(x.to(dtype).double() for x in (inputs, back))), strict=True):
        expected = exact.to(dtype)
        assert (our == expected).float().mean() > 0.99  # a few are ties between two numbers
        torch.testing.assert_close(our, expected.float(), rtol=torch.finfo(dtype).eps, atol=1e-5)


@LOW_PRECISIONS
def test_emulated_low_precision_is_as_far_from_float32_as_autocast(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """The bits differ: order and, on some processors, precision of the sums in a product are the processor's."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    rounded_to = importlib.import_module("rounding").Rounded
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8)),
        *(nn.Tanh(), nn.Flatten(), nn.Linear(72, 3)),
    )
    data = [(torch.randn(64, 2, 9, 9), torch.randint(3, (64,)))]
    exact, low, emulated = (
        flatten(
            FullBatchObjective(some, F.cross_entropy, data, arithmetic=Arithmetic(autocast=precision))
            .evaluate()
            .gradient
        )
        for some, precision in ((model, False), (model, dtype), (rounded_to(model, dtype), False))
    )
    error, of_emulated = float((low - exact).norm()), float((emulated - exact).norm())
    assert error > torch.finfo(dtype).eps / 8 * exact.norm()  # autocast rounds to 8 or 11 bits
    assert 0.4 * error < of_emulated < 1.2 * error


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_are_compared_with_one(run: Benchmark) -> None:
    result = run("distributed", *"--model linear --samples 8 --batch-size 4 --repetitions 1".split())
    assert re.search(r"two processes have [\d.]+ times the throughput of one", result.output)


@pytest.mark.slow
def test_landscapes_side_by_side(run: Benchmark, tmp_path: Path) -> None:
    for number, name in enumerate(("flat", "sharp")):
        xs = np.linspace(-1, 1, 21)[:, None]
        loss = 20.0**number * xs**2  # below 0.1 where |x| < 0.316 and where |x| < 0.071
        (tmp_path / "outputs" / name).mkdir(parents=True)
        surface = Surface(Grid(Axis(-1, 1, 21), POINT), loss, 1 - loss / 100, loss + 1)
        write_csv(surface, tmp_path / "outputs" / name / f"landscape_{name}.csv")
    output = run("compare_landscapes", "flat", "sharp").output
    widths = [float(re.findall(rf"{name}.* ([\d.]+) +│$", output, re.MULTILINE)[0]) for name in ("flat", "sharp")]
    assert widths == [0.6, 0.0]
    assert (tmp_path / "landscapes.png").read_bytes().startswith(b"\x89PNG")
    result = run("compare_landscapes", "flat", "sharp", "steep", statuses=(1,))
    assert result.errors == "steep: no landscape_steep.csv in outputs/; run crunch_loss_landscape.py first\n"


@pytest.mark.slow
def test_a_point_costs_about_a_loss(run: Benchmark) -> None:
    result = run("landscape", *"--model resnet20 --samples 32 --repetitions 3 --threads 1 --device cpu".split())
    (ratio,) = re.findall(r"a point takes ([\d.]+) times as long as one evaluation of the loss", result.output)
    assert 0.5 < float(ratio) < 2  # few samples of small images, on a machine that may be busy


@pytest.fixture
def plain_loop(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Start a process of the plain loop."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    baseline = importlib.import_module("baseline")
    loop = baseline.Loop("linear", batch_size=4, samples=8, device="cpu", threads=1, workers=1)
    return lambda: baseline.PlainLoop(loop)


def stand_in(folder: Path, script: str) -> str:
    """Return a command that runs ``script`` in place of Python, whose start takes seconds with torch."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


REPLIES = "while read -r line; do echo done; done"


@pytest.mark.slow
def test_the_plain_loop_ends_with_its_context(plain_loop: Callable[[], Any], capfd: pytest.CaptureFixture[str]) -> None:
    with plain_loop() as loop:
        loop()
        assert loop._process.poll() is None
        loop()
    assert loop._process.returncode == 0
    assert capfd.readouterr().err == ""


def test_an_error_terminates_the_plain_loop(
    plain_loop: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, f"{REPLIES}; sleep 100"))
    loop = plain_loop()
    with pytest.raises(ValueError, match="failed"), loop:
        raise ValueError("failed")
    assert loop._process.returncode == -signal.SIGTERM


def test_a_plain_loop_that_fails_ends_the_benchmark(
    plain_loop: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, "echo the reason >&2; exit 1"))
    message = "the process of the plain loop ended with status 1"
    with pytest.raises(RuntimeError, match=message), plain_loop() as loop:
        loop()
    assert capfd.readouterr().err == "the reason\n"


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
sys.executable = sys.argv[2]
from baseline import Loop, PlainLoop

with PlainLoop(Loop("linear", batch_size=4, samples=8, device="cpu", threads=1, workers=1)) as loop:
    loop()
    print("computed", flush=True)
    time.sleep(1000)
"""


@pytest.mark.slow
def test_the_plain_loop_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """The end of the parent closes the pipe, as the end of the context does in the test of a real loop above."""
    command = [sys.executable, "-c", PARENT, str(ROOT / "benchmarks"), stand_in(tmp_path, REPLIES)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "computed\n"
    process.kill()
    assert process.communicate(timeout=120) == ("", "")  # returns when the last process that could write has ended


Speed = Callable[..., dict[str, Any]]


@pytest.fixture
def speed(run: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Speed:
    """Run the benchmark of the speed with one turn, the plain loop in this process, and return what it writes."""
    baseline, gradients = importlib.import_module("baseline"), importlib.import_module("gradients")

    def plain_loop_here(loop: Any) -> nullcontext[Callable[[], None]]:
        model, loader = (
            build_model(loop.model, channels=3, classes=10, pixels=32),
            baseline.pil_loader(loop.samples, loop.batch_size, 0),
        )
        return nullcontext(partial(baseline.research_loop, model, loader, regularized=loop.regularized))

    monkeypatch.setattr(gradients, "PlainLoop", plain_loop_here)

    def run_speed(*arguments: str) -> dict[str, Any]:
        options = "--turns 1 --short-turns 1 --many-turns 1 --threads 1 --workers 1 --device cpu --json speed.json"
        run("speed", *options.split(), *arguments)
        written: dict[str, Any] = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
        return written

    return run_speed


@pytest.mark.slow
def test_speed_is_measured_for_all_models_and_blocks(speed: Speed) -> None:
    sizes, models = [2, 4], ["linear", "resnet20"]
    groups = ["gradient", "products", "data", "overhead", "memory", "limits"]
    arguments = ["--models", *models, "--batch-sizes", *map(str, sizes), "--samples", "4", "--only", *groups]
    written = speed(*arguments)
    tables: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in written["timings"]:
        tables.setdefault((row["group"], row["model"], row["batch_size"]), []).append(row)
    expected = {(group, m, size) for group in ("gradient", "products", "overhead") for m in models for size in sizes}
    assert set(tables) == expected | {("data", "", size) for size in sizes}  # once for all models
    for rows in tables.values():
        assert len(rows) == len({row["name"] for row in rows}) > 1
        assert rows[0]["ratio"] == 1
        for row in rows:  # of one turn
            assert row["samples_per_second"] == pytest.approx(row["samples"] / row["seconds"][0])
            assert 1 / row["ratio"] == pytest.approx(row["samples_per_second"] / rows[0]["samples_per_second"])
    for model in models:
        for row in (row for size in sizes for row in tables["gradient", model, size]):
            peak = written["facts"][f"matrix products in {row['dtype']}, TFLOP/s"] * 1e12
            flops = written["facts"][f"operations of the gradient of an image: {model}"]
            assert row["of_peak"] == pytest.approx(row["samples_per_second"] * flops / peak)
    assert {"device", "processor", "threads"} <= set(written["hardware"])
    assert {"torch", "python"} <= set(written["versions"])
    assert written["promises"] == []  # promises are about ResNet-18


def test_kernels_are_shown_on_request(run: Benchmark) -> None:
    options = "--only kernels --models linear --batch-sizes 4 --samples 8 --threads 1 --device cpu".split()
    output = run("speed", *options).output
    assert "kernels: linear, blocks of 4: " in output
    assert re.search(r"aten::addmm .* 4 *$", output, re.MULTILINE)  # one per block


@pytest.mark.slow
def test_settings_of_a_gpu_compute_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gradients, bench = importlib.import_module("gradients"), importlib.import_module("bench")
    monkeypatch.setattr(gradients, "low_dtypes", lambda device: [torch.bfloat16])
    monkeypatch.setattr(gradients, "EPS", 0.3)  # of the finite difference, which amplifies rounding by 1 / EPS
    compiled: list[dict[str, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda model, **options: compiled.append(options))
    measured = bench.Bench(SimpleNamespace(samples=24, turns=1, compile=True), torch.device("cuda"))
    settings = {setting.name: setting for setting in gradients.settings(measured)}
    measured.device = torch.device("cpu")
    evaluated = {
        name: flatten(gradients.objective(measured, "resnet20", 4, setting, regularized=True).evaluate().gradient)
        for name, setting in settings.items()
        if setting.dtype == torch.float32
    }
    ways = ("float32, channels_last", "TF32, channels_last", "float32, channels_last, compiled")
    assert set(evaluated) == {"float32", *ways, "float32, channels_last, compiled reduce-overhead"}
    assert [options.get("mode") for options in compiled] == [None, "reduce-overhead"]
    expected = evaluated["float32"]
    assert all((gradient - expected).norm() < 0.02 * expected.norm() for gradient in evaluated.values())


def test_promises_are_held_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    promises, timing = importlib.import_module("promises"), importlib.import_module("timing")
    ratios = {
        ("gradient", "resnet18"): {"plain loop": 1.0, "float32": 0.9, "bfloat16": 0.4, "its layers alone": 0.1},
        ("overhead", "resnet18"): {"minimal loop": 1.0, "our step": 1.034},
        ("scaling", "resnet18"): {"N": 1.0, "2N": 0.94},
        ("data", ""): {"PIL": 1.0, "on the device": 0.05},
    }
    timings = [
        timing.Timing(timing.Title(*title, 128), name, 1, (ratio,), ratio)
        for title, rows in ratios.items()
        for name, ratio in rows.items()
    ]
    facts = {"memory: resnet18, blocks of 128, central-differences, copies of the parameters beyond plain": 3.0002}

    def checked(device: str, *, fast: bool = True) -> list[tuple[float, bool]]:
        results = promises.Results(timings, facts)
        rows = promises.checked(results, torch.device(device), fast_bfloat16=fast)
        return [(round(row["measured"], 2), row["held"]) for row in rows]

    everywhere = [(1.03, True), (3.0, True), (20.0, True)]
    assert checked("cpu", fast=False) == everywhere
    assert checked("cpu") == [(2.5, True), (1.11, False), *everywhere]
    assert checked("cuda") == [(2.5, False), *everywhere, (0.06, False)]
