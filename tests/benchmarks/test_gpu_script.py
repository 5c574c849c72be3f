"""The script that makes all measurements on a GPU."""

import json
import os
import re
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
def test_small_versions_of_all_measurements_run_on_a_cpu(tmp_path: Path) -> None:
    for folder in (tmp_path / "images" / split / name for split in ("train", "test") for name in "ab"):
        folder.mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    command = [str(ROOT / "benchmarks" / "gpu.sh"), "--try", str(tmp_path / "images"), "5", "results"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-2000:]
    results = tmp_path / "results"
    assert re.search(
        r"^[1-9]\d*/\d+ tests collected", (results / "tests.log").read_text(encoding="utf-8"), re.MULTILINE
    )
    written = json.loads((results / "speed_4.json").read_text(encoding="utf-8"))
    groups = {row["group"] for row in written["timings"]}
    assert groups >= {"gradient", "regularized gradient", "allocator", "products", "data", "overhead", "scaling"}
    assert all((results / f"{precision}_0.json").exists() for precision in ("bfloat16", "float16"))
    log = (results / "full_size.log").read_text(encoding="utf-8")
    assert all(name in log for name in RUNS)


RUNS = ("base_sgd", "fb1", "fbclip", "gradreg", "gradreg_32_shuffle")
STAND_IN = """#!/bin/sh
echo "$@"
case "$*" in *"$FAILING"*) exit 1 ;; esac
"""


@pytest.fixture
def gpu_script(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run the script for a GPU with a command in place of Python that prints its arguments."""
    for name in ("gpu.sh", "full_size.sh"):
        (tmp_path / "benchmarks").mkdir(exist_ok=True)
        shutil.copy(ROOT / "benchmarks" / name, tmp_path / "benchmarks")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(STAND_IN, encoding="utf-8")
    (tmp_path / "bin" / "python").chmod(0o755)

    def run(*parts: str, failing: str = "nothing") -> "subprocess.CompletedProcess[str]":
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "FAILING": failing}
        command = [str(tmp_path / "benchmarks" / "gpu.sh"), str(tmp_path), "0.5", "results", *parts]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def commands_by_log(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in (folder / "results").glob("*.log")}


@pytest.mark.parametrize("failing", ["-m gpu", "speed_128.json", "name=base_sgd", "no part"])
def test_a_part_that_fails_does_not_prevent_others(
    gpu_script: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path, failing: str
) -> None:
    process, commands = gpu_script(failing=failing), commands_by_log(tmp_path)
    tables = {f"{name}_{size}" for name in ("speed", "others") for size in (32, 128, 512)}
    low = {f"{name}_{seed}" for name in ("bfloat16", "float16") for seed in range(3)}
    assert set(commands) == {"tests", *tables, "cost", "regularized", *low, "accuracy", "full_size"}
    assert "-m gpu" in commands["tests"]
    assert "--compile" in commands["speed_512"]
    assert "--precision float16 --only gradient" in commands["float16_2"]
    assert "--seed 2" in commands["float16_2"]
    part = {"-m gpu": "tests", "speed_128.json": "speed_128", "name=base_sgd": "full_size"}.get(failing)
    assert process.returncode == (0 if part is None else 1)
    reported = [line for line in process.stderr.splitlines() if line.startswith("failed: ") and "see" in line]
    assert reported == ([] if part is None else [f"failed: {part}; see {tmp_path / 'results'}"])
    assert [name for name in RUNS if f"name={name} " in commands["full_size"]] == list(RUNS)


def test_parts_can_be_chosen(gpu_script: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path) -> None:
    assert gpu_script("full_size", "tests").returncode == 0
    assert set(commands_by_log(tmp_path)) == {"full_size", "tests"}
    process = gpu_script("speed", "sped")
    assert process.returncode == 2
    assert process.stderr.startswith("sped: unknown part; usage: gpu.sh")
    assert set(commands_by_log(tmp_path)) == {"full_size", "tests"}
