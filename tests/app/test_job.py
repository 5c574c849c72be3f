"""Descriptions of a run, and warnings about settings that its length leaves without effect."""

import logging
import re

import pytest
from composing import settings_for

from fullbatch.app.job import warn_about

WARNINGS = {
    "hyp=gradreg hyp.steps=20": r"hyp\.warmup=400 .*hyp\.steps=20: the .* rate never exceeds 0\.038, with .*lr=0\.8",
    "hyp=fb1 hyp.steps=5": r"hyp\.warmup=5 .*hyp\.steps=5: the learning rate never exceeds 0\.08,",
    "hyp=fb1 hyp.scheduler=linear hyp.steps=2 hyp.warmup=0": r".*scheduler=linear .*: the learning rate never exceeds",
    "hyp=fb2 hyp.steps=5000": r".*hyp\.scheduler=cosine-4000 hyp\.steps=5000: the learning rate is 0 in the last steps",
    "hyp.train_switch_stochastic=300": r"hyp\.train_switch_stochastic=300 hyp\.steps=300: the mode never changes",
}
FINE = ["hyp=fb1", "hyp=fb2", "hyp=gradreg", "hyp=fb1 hyp.steps=6", "hyp.scheduler= hyp.warmup=0 hyp.steps=1"]


def test_settings_without_effect_are_named(caplog: pytest.LogCaptureFixture) -> None:
    for line, message in WARNINGS.items():
        caplog.clear()
        with caplog.at_level(logging.WARNING, "fullbatch"):
            warn_about(settings_for(*line.split()))
        (record,) = caplog.records
        assert re.match(message, record.getMessage()), record.getMessage()


def test_the_documented_runs_have_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fullbatch"):
        for line in FINE:
            warn_about(settings_for(*line.split()))
    assert caplog.records == []
