"""The documented command of the figure writes its picture and its table."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from composing import ROOT


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
