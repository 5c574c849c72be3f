"""The benchmarks run, and say what they promise."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from composing import ROOT
from PIL import Image


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
def test_the_figure_of_all_optimizers(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "optimizers.py"), "--data", "digits", "--samples", "50"]
    subprocess.run([*command, "--evaluations", "4", "--output", str(tmp_path / "figure")], check=True, cwd=ROOT)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "figure.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["optimizer"] for row in rows} == {"gd", "gd, Wolfe", "L-BFGS", "FISTA", "Adam", "SAM"}
    sam = [float(row["evaluations"]) for row in rows if row["optimizer"] == "SAM"]
    assert sam == [0, 2, 4] * 3  # two gradients a step, three learning rates
