"""Every command line of README and train.sh, read from the files, composes and parses, or is refused by name."""

import re
import shlex
import subprocess

import pytest
from composing import CONFIG, ROOT, composed
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from fullbatch.app.argv import normalized
from fullbatch.settings.impl import Distributed
from fullbatch.settings.parse import parse

SCRIPTS = "train_with_gradient_descent|crunch_loss_landscape|verify_model_checkpoint|measure_floating_point_accuracy"


def experiments() -> list[str]:
    listed = subprocess.run(["bash", str(ROOT / "train.sh"), "list"], capture_output=True, text=True, check=True).stdout
    return [" ".join(line.split()[1:]) for line in listed.splitlines()]


def commands() -> list[str]:
    pages = [ROOT / "Makefile", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    matches = re.findall(rf"^\s*(?:\$\(BIN\)/)?python (?:{SCRIPTS})\.py(.*)$", text, flags=re.MULTILINE)
    return [command.split("  #")[0].strip() for command in matches]


def submitted() -> list[str]:
    """The runs that the lines for sbatch stand for."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / "train.sbatch").read_text(encoding="utf-8")
    assert '"$program/train.sh" "$name" "impl.checkpoint.name=$name" "${@:2}"' in script
    lines = subprocess.run(["bash", str(ROOT / "train.sh"), "list"], capture_output=True, text=True, check=True).stdout
    experiment = dict(line.split(maxsplit=1) for line in lines.splitlines())
    matches = re.findall(r"^sbatch (?:--\S+ )*train\.sbatch (\S+)(.*?)(?: +#.*)?$", text, flags=re.MULTILINE)
    return [f"name={name} {experiment[name]} impl.checkpoint.name={name}{more}" for name, more in matches]


CONTRACTED = [
    *(f"hyp=fb1 hyp/optim={name}" for name in ("lbfgs", "adam", "fista", "gd_agc", "gd_clip")),
    "viz=2d impl.checkpoint.name=fbaug_2",
    *(f"hyp=fb1 hyp/optim_modification={name}" for name in ("SAM", "LARS", "LARC", "ASAM")),
]


def test_the_files_hold_what_they_promise() -> None:
    assert len(experiments()) == 43
    assert len(commands()) >= 15
    assert len(submitted()) >= 2


def parses(command: str) -> None:
    overrides = OverridesParser.create().parse_overrides(
        [argument for argument in normalized(shlex.split(command), CONFIG) if not argument.startswith("-")]
    )
    for job in BasicSweeper.split_arguments(overrides, None)[0]:
        parse(composed(*job))


@pytest.mark.slow
@pytest.mark.parametrize("command", dict.fromkeys([*commands(), *CONTRACTED]))
def test_the_command_line_parses(command: str) -> None:
    parses(command)


@pytest.mark.slow
@pytest.mark.parametrize("command", dict.fromkeys([*experiments(), *submitted()]))
def test_the_experiment_parses(command: str) -> None:
    parses(command)


def test_the_large_experiments_run_on_all_nodes() -> None:
    command = ["bash", str(ROOT / "train_distributed.sh"), "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(listed) == 18
    name, *overrides = listed[0].split()
    assert name == "fbaug_1_resnet50"
    setup = parse(composed(*overrides, "impl.setup.world_size=4")).impl.setup  # which the script appends
    assert isinstance(setup, Distributed)
    assert (setup.world_size, setup.rank) == (4, "slurm")


@pytest.mark.parametrize("script", ["train.sh", "train_distributed.sh"])
def test_an_unknown_experiment_is_refused(script: str) -> None:
    ended = subprocess.run(["bash", str(ROOT / script), "sgd"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert re.search("no (large )?experiment is named 'sgd'", ended.stderr)
