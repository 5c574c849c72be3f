"""What regularized gradients need of memory beyond plain ones, in copies of the parameters."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.runtime.live_memory import peak_of

COPIES = {"forward-differences": 2, "central-differences": 3}
"""The gradient at t and the parameters at t; for central differences also the gradient on the other side."""


@pytest.mark.parametrize("implementation", COPIES)
@pytest.mark.parametrize("acc_strength", [0.0, 0.1])
def test_differences_take_a_few_copies_of_the_parameters(implementation: str, acc_strength: float) -> None:
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Tanh(), nn.Linear(100, 100, bias=False))
    blocks = [(torch.randn(1000, 100), torch.zeros(1000, dtype=torch.int64)) for _ in range(2)]  # activations count
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    regularizer = GradRegularizer(
        model,
        optimizer,
        F.cross_entropy,
        block_strength=0.5,
        acc_strength=acc_strength,
        implementation=implementation,
    )
    parameters = 2 * 100 * 100 * 4
    plain, regularized = (
        peak_of(FullBatchObjective(model, F.cross_entropy, blocks, regularizer=r).evaluate, torch.device("cpu"))
        for r in (None, regularizer)
    )
    gbar = acc_strength > 0  # is one copy more
    assert regularized - plain <= (COPIES[implementation] + gbar + 0.1) * parameters
