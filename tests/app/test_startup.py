"""Starting a run costs little more than importing torch: what a plain run does not use is not imported."""

import json
import subprocess
import sys
from pathlib import Path

from running import SCRIPT

HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "torchvision",
    "matplotlib.pyplot",
    "pandas",
    "scipy",
    "torch.utils.tensorboard",
)
"""Modules of half a second or more; the compiler of torch takes two seconds or more."""

RUN_TWICE = """
import json, runpy, sys
from hydra.core.global_hydra import GlobalHydra

script, heavy, *arguments = sys.argv[1:]
for steps in ("hyp.steps=1", "hyp.steps=2"):  # the second run continues the checkpoint of the first
    sys.argv = [script, *arguments, steps]
    GlobalHydra.instance().clear()
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        assert not ended.code
print(json.dumps([name for name in json.loads(heavy) if name in sys.modules]))
"""


def test_a_plain_run_on_a_cpu_imports_no_compiler(tmp_path: Path) -> None:
    options = ["data=digits", "data.size=60", "model=linear", "hyp=fb1", "hyp.warmup=0", "impl.checkpoint.name=one"]
    command = [sys.executable, "-c", RUN_TWICE, str(SCRIPT), json.dumps(HEAVY), *options]
    ended = subprocess.run(
        [*command, "impl.device=cpu", "impl.threads=1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "continuing" in ended.stdout
    assert json.loads(ended.stdout.splitlines()[-1]) == []
