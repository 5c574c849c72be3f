"""The benchmarks run, and say what they promise."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from composing import ROOT
from PIL import Image

from fullbatch.landscape.export import write_csv
from fullbatch.landscape.grid import POINT, Axis, Grid
from fullbatch.landscape.surface import Surface


def data_benchmark(tmp_path: Path, *arguments: str) -> str:
    """What the benchmark of the data says about 40 pictures."""
    for place in (tmp_path / split / name for split in ("train", "val") for name in "ab"):
        place.mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.jpg")
    command = [sys.executable, str(ROOT / "benchmarks" / "data.py"), "--path", str(tmp_path), "--samples", "40"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command += arguments
    return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, env=environment).stdout


@pytest.mark.slow
def test_pictures_come_faster_from_a_data_base(tmp_path: Path) -> None:
    (ratio,) = re.findall(r"the data base is ([\d.]+) times as fast", data_benchmark(tmp_path))
    assert float(ratio) > 2


@pytest.mark.slow
def test_the_memory_of_each_way_is_shown(tmp_path: Path) -> None:
    shown = data_benchmark(tmp_path, "--memory", "--crop", "--workers", "1")
    assert re.findall(r"(cached|streamed|whole) +│ +[\d,]+ +│ +[\d,]+", shown) == ["cached", "streamed", "whole"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["edge_of_stability", "sharpness"])
def test_the_sharpness_is_measured(tmp_path: Path, script: str) -> None:
    """Too short to be at the edge: that, or a cost above the limit, is what status 1 says."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--samples", "100", "--steps", "60"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*command, "--every", "20"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode in (0, 1), ended.stderr
    assert not ended.stderr
    if script == "sharpness":
        (error,) = re.findall(r"largest\s+error\s+([\d.]+)%", ended.stdout)
        assert float(error) <= 1
    else:
        assert len(re.findall(r"median of lr sharpness/2", ended.stdout)) == 2
        assert (tmp_path / "edge_of_stability.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_figure_of_all_optimizers(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "optimizers.py"), "--data", "digits", "--samples", "50"]
    subprocess.run([*command, "--evaluations", "4", "--output", str(tmp_path / "figure")], check=True, cwd=ROOT)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "figure.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["optimizer"] for row in rows} == {"gd", "gd, Wolfe", "L-BFGS", "FISTA", "Adam", "SAM"}
    sam = [float(row["evaluations"]) for row in rows if row["optimizer"] == "SAM"]
    assert sam == [0, 2, 4] * 3  # two gradients a step, three learning rates


@pytest.mark.slow
@pytest.mark.parametrize("part", ["gradient", "accuracy"])
def test_low_precision_is_compared_and_promises_are_checked(tmp_path: Path, part: str) -> None:
    """Too short for the promises: status 1 says when they do not hold, and when not is read off the numbers."""
    command = [sys.executable, str(ROOT / "benchmarks" / "low_precision.py"), "--samples", "40", "--only", part]
    options = ["--seeds", "2", "--steps", "1", "--accuracy-steps", "2", "--json", str(tmp_path / "found.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert not ended.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert "PyTorch" in found["machine"]
    if part == "gradient":
        differences = [row["relative"] for row in found["gradient"]]
        assert len(differences) == 3
        assert all(0 < difference < 1 for difference in differences)  # bfloat16, and the same gradient
        kept = max(differences[1:]) <= 0.05
    else:
        single, low, spread = (found["accuracy"][name] for name in ("float32", "bfloat16", "spread"))
        assert spread == max(max(single) - min(single), 1 / 360)
        kept = abs(sum(low) / 2 - sum(single) / 2) <= spread
    assert ended.returncode == (0 if kept else 1)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_are_measured_beside_one() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "distributed.py"), "--model", "resnet20", "--samples", "8"]
    small = ["--batch-size", "4", "--repetitions", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([*command, *small], check=True, capture_output=True, text=True, env=environment)
    assert re.search(r"two processes have [\d.]+ times the throughput of one", ended.stdout)


@pytest.mark.slow
def test_landscapes_side_by_side(tmp_path: Path) -> None:
    for number, name in enumerate(("flat", "sharp")):
        xs = np.linspace(-1, 1, 21)[:, None]
        loss = 20.0**number * xs**2  # below 0.1 where |x| < 0.316 and where |x| < 0.071
        (tmp_path / "outputs" / name).mkdir(parents=True)
        surface = Surface(Grid(Axis(-1, 1, 21), POINT), loss, 1 - loss / 100, loss + 1)
        write_csv(surface, tmp_path / "outputs" / name / f"landscape_{name}.csv")
    command = [sys.executable, str(ROOT / "benchmarks" / "compare_landscapes.py"), "flat", "sharp"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    ended = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True, env=environment)
    widths = [float(re.findall(rf"{name}.* ([\d.]+) +│$", ended.stdout, re.MULTILINE)[0]) for name in ("flat", "sharp")]
    assert widths == [0.6, 0.0]
    assert (tmp_path / "landscapes.png").read_bytes().startswith(b"\x89PNG")
    ended = subprocess.run(
        [*command, "steep"], check=False, cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert ended.stderr == "steep: no landscape_steep.csv below outputs/; run crunch_loss_landscape.py first\n"


@pytest.mark.slow
def test_a_point_costs_about_a_loss() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "landscape.py"), "--model", "resnet20", "--samples", "64"]
    options = ["--repetitions", "3", "--threads", "1", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([*command, *options], check=True, capture_output=True, text=True, env=environment)
    (ratio,) = re.findall(r"a point takes ([\d.]+) times as long as one evaluation of the loss", ended.stdout)
    assert 0.5 < float(ratio) < 2  # on few samples of small pictures, on a machine that is perhaps busy
