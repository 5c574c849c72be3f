"""A set larger than the memory it may take is streamed, and takes no more than the blocks on their way."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COUNT, SIDE, MIB = 256, 512, 1 << 20  # 192 MiB of decoded images in small files

CODE = """
import sys, pathlib, torch
from fullbatch.data import loader as blocks
from fullbatch.data.dataset import ImageRequest, load_images
folder, free, workers = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
blocks.available_memory = lambda: free
options = {"pixels": 512, "channels": 3, "mean": [0.0] * 3, "std": [1.0] * 3}
part = load_images("imagefolder", ImageRequest(str(folder), **options)).train
warm = blocks.BlockLoader(part, batch_size=2, reading=blocks.ReadOptions(False, workers))
next(iter(warm.blocks(0)))
status = pathlib.Path("/proc/self/status")
def own():
    fields = dict(line.split(":") for line in status.read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) + int(fields["RssShmem"].split()[0])
before = own()
loader, most, samples = blocks.BlockLoader(part, batch_size=2, reading=blocks.ReadOptions(None, workers)), 0, 0
for block in loader.blocks(0):
    samples += len(block.labels)
    most = max(most, own() - before)
print(samples, most // 1024)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(COUNT):
        path = tmp_path / "images" / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIDE, SIDE, 3), number, np.uint8)).save(path, compress_level=1)
    for name in "ab":
        (tmp_path / "images" / "val" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(tmp_path / "images" / "val" / name / "0.png")
    return tmp_path / "images"


def grown(folder: Path, free: int, workers: int) -> int:
    """MiB that reading all blocks took at most, where so many bytes of memory are said to be free."""
    command = [sys.executable, "-c", CODE, str(folder), str(free), str(workers)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    samples, most = map(int, shown.split())
    assert samples == COUNT
    return most


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_streaming_takes_a_bounded_memory(folder: Path) -> None:
    whole = COUNT * SIDE * SIDE * 3 // MIB
    assert grown(folder, free=1 << 40, workers=0) > 0.9 * whole  # cached: all the images
    for workers in (0, 2):  # a block is 6 MiB of floats, two of a worker are on their way, 128 MiB may be freed late
        assert grown(folder, free=150 * MIB, workers=workers) < 0.9 * whole
