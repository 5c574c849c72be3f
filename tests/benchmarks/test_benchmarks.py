"""The benchmarks run, and say what they promise."""

import copy
import csv
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from composing import ROOT
from PIL import Image
from running import run_in_process
from streams import Late
from tape import Tape
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch import FullBatchObjective
from fullbatch.landscape.export import write_csv
from fullbatch.landscape.grid import POINT, Axis, Grid
from fullbatch.landscape.surface import Surface
from fullbatch.tensors import flatten


class Ended(NamedTuple):
    """How a script has ended, and what it printed."""

    status: int
    shown: str
    errors: str


Benchmark = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Benchmark:
    """Runs a script of benchmarks/ by name, in ``tmp_path``; it must end in one of ``statuses``."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of processes that it starts
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def to_its_end(name: str, *arguments: str, statuses: tuple[int, ...] = (0,)) -> Ended:
        status = run_in_process(monkeypatch, tmp_path, *arguments, script=ROOT / "benchmarks" / f"{name}.py")
        ended = Ended(status, *capsys.readouterr())
        assert ended.status in statuses, ended
        return ended

    return to_its_end


@pytest.fixture
def forty_images(tmp_path: Path) -> list[str]:
    """What tells the benchmark of the data where they are."""
    for place in (tmp_path / split / name for split in ("train", "val") for name in "ab"):
        place.mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.jpg")
    return ["--path", str(tmp_path), "--samples", "40"]


@pytest.mark.slow
def test_images_come_faster_from_a_data_base(run: Benchmark, forty_images: list[str]) -> None:
    (ratio,) = re.findall(r"the database is ([\d.]+) times as fast", run("data", *forty_images).shown)
    assert float(ratio) > 2


@pytest.mark.slow
def test_the_memory_of_each_way_is_shown(run: Benchmark, forty_images: list[str]) -> None:
    shown = run("data", *forty_images, "--memory", "--crop", "--workers", "1").shown
    assert re.findall(r"(cached|streamed|whole) +│ +[\d,]+ +│ +[\d,]+", shown) == ["cached", "streamed", "whole"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["edge_of_stability", "sharpness"])
def test_the_sharpness_is_measured(run: Benchmark, tmp_path: Path, script: str) -> None:
    """Too short to be at the edge: that, or a cost above the limit, is what status 1 says."""
    ended = run(script, "--samples", "100", "--steps", "60", "--every", "20", statuses=(0, 1))
    assert not ended.errors
    if script == "sharpness":
        (error,) = re.findall(r"largest\s+error\s+([\d.]+)%", ended.shown)
        assert float(error) <= 1
    else:
        assert len(re.findall(r"median of lr sharpness/2", ended.shown)) == 2
        assert (tmp_path / "edge_of_stability.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_figure_of_all_optimizers(run: Benchmark, tmp_path: Path) -> None:
    run("optimizers", *"--data digits --samples 50 --evaluations 4 --output figure".split())
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "figure.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["optimizer"] for row in rows} == {"gd", "gd, Wolfe", "L-BFGS", "FISTA", "Adam", "SAM"}
    sam = [float(row["evaluations"]) for row in rows if row["optimizer"] == "SAM"]
    assert sam == [0, 2, 4] * 3  # two gradients a step, three learning rates


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    ["gradient", "gradient --emulated", "accuracy", "accuracy --emulated", "accuracy --emulated --precision float16"],
)
def test_low_precision_is_compared_and_promises_are_checked(run: Benchmark, tmp_path: Path, part: str) -> None:
    """Too short for the promises: status 1 says when they do not hold, and when not is read off the numbers."""
    options = "--samples 40 --seeds 2 --steps 1 --accuracy-steps 2 --json found.json".split()
    ended = run("low_precision", "--only", *part.split(), *options, statuses=(0, 1))
    assert not ended.errors
    found = json.loads((tmp_path / "found.json").read_text())
    assert "PyTorch" in found["machine"]
    if part.startswith("gradient"):
        differences = [row["relative"] for row in found["gradient"]]
        assert len(differences) == 3
        assert all(0 < difference < 1 for difference in differences)  # bfloat16, and the same gradient
        kept = max(differences[1:]) <= 0.05
    else:
        single, low, spread = (
            found["accuracy"][name] for name in ("float32", "float16" if "float16" in part else "bfloat16", "spread")
        )
        assert spread == max(max(single) - min(single), 1 / 360)
        kept = abs(sum(low) / 2 - sum(single) / 2) <= spread
    assert ended.status == (0 if kept else 1)


LOW_PRECISIONS = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@LOW_PRECISIONS
def test_emulated_products_are_exact_ones_of_rounded_numbers(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    emulated_in = importlib.import_module("rounding").Rounded
    torch.manual_seed(0)
    layer, inputs, back = nn.Conv2d(4, 8, 3), torch.randn(16, 4, 9, 9), torch.randn(16, 8, 7, 7)
    reference = copy.deepcopy(layer).to(dtype).double()

    def product(some: nn.Module, inputs: Tensor, back: Tensor) -> list[Tensor]:
        outputs = some(inputs)
        return [outputs.detach(), *torch.autograd.grad(outputs, list(some.parameters()), back)]

    ours = product(emulated_in(layer, dtype), inputs, back)
    for our, exact in zip(ours, product(reference, *(x.to(dtype).double() for x in (inputs, back))), strict=True):
        expected = exact.to(dtype)
        assert (our == expected).float().mean() > 0.99  # some lie in the middle of two numbers
        torch.testing.assert_close(our, expected.float(), rtol=torch.finfo(dtype).eps, atol=1e-5)


@LOW_PRECISIONS
def test_emulated_low_precision_is_as_far_from_float32_as_that_of_autocast(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Not the same bits: the order of sums in a product is the processor's, and the precision of sums on some."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    emulated_in = importlib.import_module("rounding").Rounded
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8)),
        *(nn.Tanh(), nn.Flatten(), nn.Linear(72, 3)),
    )
    data = [(torch.randn(64, 2, 9, 9), torch.randint(3, (64,)))]
    exact, low, emulated = (
        flatten(FullBatchObjective(some, F.cross_entropy, data, mixed_precision=precision).evaluate().gradient)
        for some, precision in ((model, False), (model, dtype), (emulated_in(model, dtype), False))
    )
    error, of_emulated = float((low - exact).norm()), float((emulated - exact).norm())
    assert error > torch.finfo(dtype).eps / 8 * exact.norm()  # of numbers with 8 or 11 bits
    assert 0.4 * error < of_emulated < 1.2 * error


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_are_measured_beside_one(run: Benchmark) -> None:
    ended = run("distributed", *"--model resnet20 --samples 8 --batch-size 4 --repetitions 1".split())
    assert re.search(r"two processes have [\d.]+ times the throughput of one", ended.shown)


@pytest.mark.slow
def test_landscapes_side_by_side(run: Benchmark, tmp_path: Path) -> None:
    for number, name in enumerate(("flat", "sharp")):
        xs = np.linspace(-1, 1, 21)[:, None]
        loss = 20.0**number * xs**2  # below 0.1 where |x| < 0.316 and where |x| < 0.071
        (tmp_path / "outputs" / name).mkdir(parents=True)
        surface = Surface(Grid(Axis(-1, 1, 21), POINT), loss, 1 - loss / 100, loss + 1)
        write_csv(surface, tmp_path / "outputs" / name / f"landscape_{name}.csv")
    shown = run("compare_landscapes", "flat", "sharp").shown
    widths = [float(re.findall(rf"{name}.* ([\d.]+) +│$", shown, re.MULTILINE)[0]) for name in ("flat", "sharp")]
    assert widths == [0.6, 0.0]
    assert (tmp_path / "landscapes.png").read_bytes().startswith(b"\x89PNG")
    ended = run("compare_landscapes", "flat", "sharp", "steep", statuses=(1,))
    assert ended.errors == "steep: no landscape_steep.csv below outputs/; run crunch_loss_landscape.py first\n"


@pytest.mark.slow
def test_a_point_costs_about_a_loss(run: Benchmark) -> None:
    ended = run("landscape", *"--model resnet20 --samples 64 --repetitions 3 --threads 1 --device cpu".split())
    (ratio,) = re.findall(r"a point takes ([\d.]+) times as long as one evaluation of the loss", ended.shown)
    assert 0.5 < float(ratio) < 2  # on few samples of small images, on a machine that is perhaps busy


def plain_loop(monkeypatch: pytest.MonkeyPatch, model: str) -> Any:
    """The process of the plain loop, not yet asked for anything."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    baseline = importlib.import_module("baseline")
    return baseline.PlainLoop(baseline.Loop(model, batch_size=4, samples=8, device="cpu", threads=1, workers=1))


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_the_plain_loop_ends_with_its_context(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fails: bool
) -> None:
    with (
        pytest.raises(ValueError, match="failed") if fails else nullcontext(),
        plain_loop(monkeypatch, "linear") as loop,
    ):
        loop()
        assert loop._process.poll() is None
        if fails:
            raise ValueError("failed")
        loop()
    assert loop._process.returncode == (-signal.SIGTERM if fails else 0)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_plain_loop_that_cannot_run_ends_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told = "the process of the plain loop has ended with status 1"
    with pytest.raises(RuntimeError, match=told), plain_loop(monkeypatch, "resnet0") as loop:
        loop()
    assert "depth=0: unknown" in capfd.readouterr().err


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from baseline import Loop, PlainLoop

with PlainLoop(Loop("linear", batch_size=4, samples=8, device="cpu", threads=1, workers=1)) as loop:
    loop()
    print("computed", flush=True)
    time.sleep(1000)
"""


@pytest.mark.slow
def test_the_plain_loop_ends_when_its_parent_is_killed() -> None:
    command = [sys.executable, "-c", PARENT, str(ROOT / "benchmarks")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "computed\n"
    process.kill()
    assert process.communicate(timeout=120) == ("", "")  # until the last process that could write has ended


Speed = Callable[..., dict[str, Any]]


@pytest.fixture
def speed(run: Benchmark, tmp_path: Path) -> Speed:
    """Runs the benchmark of the speed as briefly as it can be; returns what it writes."""

    def found(*arguments: str) -> dict[str, Any]:
        options = "--turns 1 --short-turns 1 --many-turns 1 --threads 1 --workers 1 --device cpu --json speed.json"
        run("speed", *options.split(), *arguments)
        written: dict[str, Any] = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
        return written

    return found


@pytest.mark.slow
def test_speed_is_measured_for_all_models_and_blocks(speed: Speed) -> None:
    sizes, models = [4, 8], ["linear", "resnet20"]
    groups = ["gradient", "products", "data", "overhead", "memory", "limits"]
    arguments = ["--models", *models, "--batch-sizes", *map(str, sizes), "--samples", "8", "--only", *groups]
    found = speed(*arguments)
    tables: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in found["timings"]:
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
            peak = found["facts"][f"matrix products in {row['dtype']}, TFLOP/s"] * 1e12
            flops = found["facts"][f"operations of the gradient of an image: {model}"]
            assert row["of_peak"] == pytest.approx(row["samples_per_second"] * flops / peak)
    assert {"device", "processor", "threads"} <= set(found["hardware"])
    assert {"torch", "python"} <= set(found["versions"])
    assert found["promises"] == []  # which are about ResNet-18


def test_kernels_are_shown_when_asked_for(run: Benchmark) -> None:
    options = "--only kernels --models linear --batch-sizes 4 --samples 8 --threads 1 --device cpu".split()
    shown = run("speed", *options).shown
    assert "kernels: linear, blocks of 4: " in shown
    assert re.search(r"aten::addmm .* 4 *$", shown, re.MULTILINE)  # as many as blocks


@pytest.mark.slow
def test_settings_of_a_gpu_compute_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gradients, bench = importlib.import_module("gradients"), importlib.import_module("bench")
    monkeypatch.setattr(gradients, "low_dtypes", lambda device: [torch.bfloat16])
    monkeypatch.setattr(gradients, "recorder_on", lambda device: Tape())
    monkeypatch.setattr(gradients, "streams_on", lambda device, number: [Late() for _ in range(number)])
    some = bench.Bench(SimpleNamespace(samples=24, turns=1, compile=False), torch.device("cuda"))
    settings = {setting.name: setting for setting in gradients.settings(some)}
    some.device = torch.device("cpu")
    found = {
        name: flatten(gradients.objective(some, "resnet20", 4, setting, regularized=True).evaluate().gradient)
        for name, setting in settings.items()
        if setting.dtype == torch.float32
    }
    assert {name.removeprefix("float32, channels_last, ") for name in found} > {
        "replayed",
        "replayed, 2 in flight",
        "replayed, 4 in flight",
    }
    expected = found["float32"]
    assert all((gradient - expected).norm() < 0.02 * expected.norm() for gradient in found.values())


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
