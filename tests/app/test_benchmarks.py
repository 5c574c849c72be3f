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


@pytest.mark.slow
def test_pictures_come_faster_from_a_data_base(tmp_path: Path) -> None:
    for place in (tmp_path / split / name for split in ("train", "val") for name in "ab"):
        place.mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.jpg")
    command = [sys.executable, str(ROOT / "benchmarks" / "data.py"), "--path", str(tmp_path), "--samples", "40"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, env=environment)
    (ratio,) = re.findall(r"the data base is ([\d.]+) times as fast", ended.stdout)
    assert float(ratio) > 2


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
@pytest.mark.distributed
def test_two_processes_are_measured_beside_one() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "distributed.py"), "--model", "resnet20", "--samples", "8"]
    small = ["--batch-size", "4", "--repetitions", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([*command, *small], check=True, capture_output=True, text=True, env=environment)
    assert re.search(r"two processes have [\d.]+ times the throughput of one", ended.stdout)
