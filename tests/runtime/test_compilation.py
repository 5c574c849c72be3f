"""Compilation keeps names, and numbers up to rounding; if it fails, the model runs uncompiled."""

import logging

import pytest
import torch
from cases import build, cut, samples
from composing import composed
from references import vector
from torch import nn
from torch.nn import functional as F

from fullbatch.build.precision import build_compiled
from fullbatch.build.problem import build_problem
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.runtime.compilation import compile_model
from fullbatch.settings.parse import parse


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns about its own code
def test_compiled_evaluations_are_the_same_up_to_rounding(caplog: pytest.LogCaptureFixture) -> None:
    model, data = build("batchnorm").eval(), cut(*samples(), [16, 16, 1])
    objective = FullBatchObjective(model, F.cross_entropy, data)
    names, expected = list(model.state_dict()), vector(objective.evaluate().gradient)
    with caplog.at_level(logging.WARNING):
        compiled = compile_model(model, objective.over(data[:1]).evaluate)
    gradient = vector(objective.evaluate().gradient)
    assert compiled or "impl.compile: not possible here" in caplog.text  # a machine without a C++ compiler
    assert list(model.state_dict()) == names
    assert (gradient - expected).norm() <= 1e-12 * expected.norm()


def test_after_a_failure_the_model_runs_uncompiled(caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = build("tanh"), samples()[0]
    expected = model(inputs)

    def trial() -> None:
        raise RuntimeError("\nno compiler\nand much more")

    with caplog.at_level(logging.WARNING):
        assert not compile_model(model, trial)
    assert "impl.compile: not possible here, continuing uncompiled (no compiler)" in caplog.text
    assert torch.equal(model(inputs), expected)


def test_the_mode_reaches_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[dict[str, object]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda model, **given: options.append(given))
    for mode in (None, "reduce-overhead"):
        compile_model(build("tanh"), lambda: None, mode)
    run = parse(composed("data=digits", "data.size=20", "model=linear", "hyp=fb1", "impl.compile=Reduce-Overhead"))
    build_compiled(run, build_problem(run, 0).objective)
    assert [given["mode"] for given in options] == [None, "reduce-overhead", "reduce-overhead"]
