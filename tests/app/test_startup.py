"""Starting a run costs little more than importing torch: what a plain run does not use is not imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from composing import ROOT
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


POLICY_AT_IMPORT = """
import os, runpy, sys

class BeforeTorch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, BeforeTorch())
import fullbatch
assert fullbatch.__version__ and os.environ.get("OMP_WAIT_POLICY") in (None, "ACTIVE")
sys.argv = sys.argv[1:]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("command", "environment", "policy"),
    [
        *(([str(script)], {}, "PASSIVE") for script in sorted(ROOT.glob("*_*.py"))),
        ([str(SCRIPT)], TORCHRUN, "PASSIVE"),
        ([str(SCRIPT)], {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        (["fullbatch", "inspect", "here"], {}, "PASSIVE"),
    ],
    ids=lambda value: Path(value[0]).stem if isinstance(value, list) else None,
)
def test_idle_threads_sleep_before_torch_is_imported(
    tmp_path: Path, command: list[str], environment: dict[str, str], policy: str
) -> None:
    inherited = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    ended = subprocess.run(
        [sys.executable, "-c", POLICY_AT_IMPORT, *command],
        cwd=tmp_path,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, f"{policy}\n"), ended.stderr
