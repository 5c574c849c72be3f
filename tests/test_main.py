"""``python -m fullbatch``: the table of commands."""

import subprocess
import sys
from importlib import import_module

import pytest
from composing import ROOT

from fullbatch.__main__ import COMMANDS, main


def run(*arguments: str, code: str = "") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *(["-c", code] if code else ["-m", "fullbatch"]), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_help_lists_all_commands_and_imports_no_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name:15} {description}\n" in shown for name, (description, _) in COMMANDS.items())
    code = (
        "import sys; from fullbatch.__main__ import main; main(['-h']); assert not {'torch', 'hydra'} & {*sys.modules}"
    )
    ended = run(code=code)
    assert ended.returncode == 0, ended.stderr


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == f"fullbatch trian: there is no such command; known: {', '.join(COMMANDS)}\n"


def test_every_command_is_a_function() -> None:
    for _, target in COMMANDS.values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function))


@pytest.mark.slow
def test_the_command_and_the_script_compose_the_same_configuration() -> None:
    script = [sys.executable, "train_with_gradient_descent.py", "--cfg", "job", "hyp=gradreg"]
    expected = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ended = run("train", "--cfg", "job", "hyp=gradreg")
    assert (ended.returncode, ended.stdout) == (0, expected)
    assert "block_strength: 0.5" in expected
    ended = run("train", "hyp=nonsense")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("hyp=nonsense: unknown; known: _default_hyperparams, base_sgd")
