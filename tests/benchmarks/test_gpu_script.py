"""The script that does all that is to be measured on a GPU."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from composing import ROOT
from PIL import Image


@pytest.mark.soak
def test_all_for_a_gpu_is_tried_in_small(tmp_path: Path) -> None:
    for place in (tmp_path / "images" / split / name for split in ("train", "test") for name in "ab"):
        place.mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    command = [str(ROOT / "benchmarks" / "gpu.sh"), "--try", str(tmp_path / "images"), "5", "results"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    results = tmp_path / "results"
    assert "test_no_evaluation_waits_for_the_gpu" in (results / "tests.log").read_text(encoding="utf-8")
    written = json.loads((results / "speed_4.json").read_text(encoding="utf-8"))
    groups = {row["group"] for row in written["timings"]}
    assert groups >= {"gradient", "regularized gradient", "allocator", "products", "data", "overhead", "scaling"}
    assert all((results / f"{precision}_0.json").exists() for precision in ("bfloat16", "float16"))
    log = (results / "full_size.log").read_text(encoding="utf-8")
    assert all(name in log for name in RUNS)


RUNS = ("base_sgd", "fb1", "fbclip", "gradreg", "gradreg_32_shuffle")
STANDS_IN = """#!/bin/sh
echo "$@"
case "$*" in *"$FAILING"*) exit 1 ;; esac
"""


@pytest.fixture
def gpu_script(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs the script for a GPU with a command that prints what it is asked for in the place of Python."""
    for name in ("gpu.sh", "full_size.sh"):
        (tmp_path / "benchmarks").mkdir(exist_ok=True)
        shutil.copy(ROOT / "benchmarks" / name, tmp_path / "benchmarks")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(STANDS_IN, encoding="utf-8")
    (tmp_path / "bin" / "python").chmod(0o755)

    def run(*parts: str, failing: str = "nothing") -> "subprocess.CompletedProcess[str]":
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "FAILING": failing}
        command = [str(tmp_path / "benchmarks" / "gpu.sh"), str(tmp_path), "0.5", "results", *parts]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def asked_for(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in (folder / "results").glob("*.log")}


@pytest.mark.parametrize("failing", ["-m gpu", "speed_128.json", "name=base_sgd", "no part"])
def test_a_part_for_a_gpu_that_fails_prevents_no_other(
    gpu_script: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path, failing: str
) -> None:
    ended, asked = gpu_script(failing=failing), asked_for(tmp_path)
    tables = {f"{name}_{size}" for name in ("speed", "others") for size in (32, 128, 512)}
    low = {f"{name}_{seed}" for name in ("bfloat16", "float16") for seed in range(3)}
    assert set(asked) == {"tests", *tables, "cost", "regularized", *low, "accuracy", "full_size"}
    assert "-m gpu" in asked["tests"]
    assert "--compile" in asked["speed_512"]
    assert "--precision float16 --only gradient" in asked["float16_2"]
    assert "--seed 2" in asked["float16_2"]
    part = {"-m gpu": "tests", "speed_128.json": "speed_128", "name=base_sgd": "full_size"}.get(failing)
    assert ended.returncode == (0 if part is None else 1)
    told = [line for line in ended.stderr.splitlines() if line.startswith("not everything went well")]
    assert told == ([] if part is None else [f"not everything went well: {part}; see {tmp_path / 'results'}"])
    assert [name for name in RUNS if f"name={name} " in asked["full_size"]] == list(RUNS)


def test_parts_for_a_gpu_are_chosen(
    gpu_script: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    assert gpu_script("full_size", "tests").returncode == 0
    assert set(asked_for(tmp_path)) == {"full_size", "tests"}
    ended = gpu_script("speed", "sped")
    assert ended.returncode == 2
    assert ended.stderr.startswith("sped: no such part; usage: gpu.sh")
    assert set(asked_for(tmp_path)) == {"full_size", "tests"}
