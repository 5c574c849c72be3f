"""One thread a test process: the suite runs in parallel, and small tensors gain nothing from more."""

import os

import pytest
import torch

torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
