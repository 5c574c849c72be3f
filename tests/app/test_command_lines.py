"""Every command line of README and train.sh, read from the files, composes and parses, or is refused by name."""

import re
import shlex
import subprocess
from itertools import product

import pytest
from composing import CONFIG, ROOT, composed
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from fullbatch.command_line import normalized
from fullbatch.config import parse

NOT_YET = [  # what this version lacks, and what its refusal says
    ("impl/setup=distributed", "distributed"),
    ("analysis=full", "full"),
]
"""First match wins; every other command line must work."""
SCRIPTS = "train_with_gradient_descent|crunch_loss_landscape|verify_model_checkpoint|measure_floating_point_accuracy"


def experiments() -> list[str]:
    listed = subprocess.run(["bash", str(ROOT / "train.sh"), "list"], capture_output=True, text=True, check=True).stdout
    return [" ".join(line.split()[1:]) for line in listed.splitlines()]


def commands() -> list[str]:
    pages = [ROOT / "Makefile", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    found = re.findall(rf"^\s*(?:\$\(BIN\)/)?python (?:{SCRIPTS})\.py(.*)$", text, flags=re.MULTILINE)
    return [command.split("  #")[0].strip() for command in found]


def sweep(arguments: list[str]) -> list[list[str]]:
    """All the jobs of a command line, more than one with ``-m``."""
    overrides = normalized([argument for argument in arguments if argument not in ("-m", "--multirun")], CONFIG)
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = [
        [f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()] if o.is_sweep_override() else [text]
        for o, text in zip(parsed, overrides, strict=True)
    ]
    return [list(job) for job in product(*choices)]


def refusal(command: str) -> str | None:
    return next((said for part, said in NOT_YET if part in command), None)


CONTRACTED = [
    *(f"hyp=fb1 hyp/optim={name}" for name in ("lbfgs", "adam", "fista", "gd_agc", "gd_clip")),
    "viz=2d impl.checkpoint.name=fbaug_2",
    *(f"hyp=fb1 hyp/optim_modification={name}" for name in ("SAM", "LARS", "LARC", "ASAM")),
]


def test_the_files_hold_what_they_promise() -> None:
    assert len(experiments()) == 43
    assert len(commands()) >= 15


@pytest.mark.parametrize("command", dict.fromkeys([*commands(), *experiments(), *CONTRACTED]))
def test_the_command_line_parses(command: str) -> None:
    said = refusal(command)
    for job in sweep(shlex.split(command)):
        if said is None:
            parse(composed(*job))
        else:
            with pytest.raises((ValueError, HydraException), match=said):
                parse(composed(*job))


def test_an_unknown_experiment_is_refused() -> None:
    ended = subprocess.run(["bash", str(ROOT / "train.sh"), "sgd"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "no experiment is named 'sgd'" in ended.stderr
