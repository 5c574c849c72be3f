"""One thread a test process: the suite runs in parallel, and small tensors gain nothing from more."""

import os

import hypothesis
import pytest
import torch

# Continuous integration repeats its examples: what it finds must be about the change. Elsewhere they are new ones.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
