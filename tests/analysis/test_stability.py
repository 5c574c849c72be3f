"""Stability thresholds: on a quadratic, optimizers converge just below and diverge just above them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from fullbatch.analysis.eigenvalues import largest_eigenpairs
from fullbatch.analysis.operators import curvature
from fullbatch.analysis.stability import (
    decay_of_loss,
    has_threshold,
    is_adaptive,
    preconditioner,
    stability_threshold,
)
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.optim.adaptive_clipping import ClippedDescent
from fullbatch.optim.descent import Descent
from fullbatch.optim.fista import FISTA
from fullbatch.optim.lbfgs import LBFGS
from fullbatch.optim.line_search import Restarting
from fullbatch.optim.sam import SAM
from fullbatch.optim.wolfe import Wolfe

LR = 0.1
DESCENTS = {
    "gd": {},
    "polyak": {"momentum": 0.9},
    "polyak, damped": {"momentum": 0.9, "dampening": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "little momentum": {"momentum": 0.3, "nesterov": True},
    "decayed": {"momentum": 0.5, "weight_decay": 2.0},
}
FORMULAS = {
    "gd": 2 / LR,
    "polyak": 3.8 / LR,
    "polyak, damped": 7.6 / LR,
    "nesterov": 3.8 / (2.8 * LR),
    "little momentum": 2.6 / (1.6 * LR),
    "decayed": 3.0 / LR,
}


def converges(optimizer: Optimizer, t: nn.Parameter, curvatures: float, steps: int = 300) -> bool:
    """Return whether the optimizer converges from 1 to 0 on curvature/2 t^2; otherwise it must diverge."""

    def closure() -> torch.Tensor:
        t.grad = curvatures * t.detach()
        return curvatures / 2 * t.detach().square().sum()

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
        if abs(t.item()) > 100:
            return False
    assert abs(t.item()) < 0.1
    return True


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("name", DESCENTS)
@pytest.mark.parametrize("kind", [Descent, torch.optim.SGD])
def test_descents_are_stable_exactly_below_the_threshold(name: str, kind: Callable[..., Optimizer]) -> None:
    for factor, stable in ((0.97, True), (1.03, False)):
        t = parameter()
        optimizer = kind([t], lr=LR, **DESCENTS[name])
        threshold = stability_threshold(optimizer)
        assert threshold == pytest.approx(FORMULAS[name])
        decay = optimizer.param_groups[0]["weight_decay"]  # part of the loss, hence of the curvature
        assert converges(optimizer, t, factor * threshold - decay) == stable


@pytest.mark.parametrize("decay", [0.0, 3.0])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_is_stable_exactly_below_the_threshold(decay: float, kind: type[torch.optim.Adam]) -> None:
    """With constant second moments P is constant, and the relevant curvature is h/P."""
    for factor, stable in ((0.97, True), (1.03, False)):
        t = parameter()
        optimizer = kind([t], lr=LR, betas=(0.9, 1 - 1e-12), eps=0.5, weight_decay=decay)
        optimizer.state[t] = {
            "step": torch.tensor(1e14),
            "exp_avg": torch.zeros_like(t),
            "exp_avg_sq": torch.full_like(t, 2.25),
        }
        (p,) = preconditioner(optimizer, nn.ParameterList([t]))
        assert float(p) == pytest.approx(2.0)
        threshold, coupled = stability_threshold(optimizer), sum(decay_of_loss(optimizer, nn.ParameterList([t])))
        assert coupled == (decay if kind is torch.optim.Adam else 0.0)
        assert converges(optimizer, t, factor * threshold * float(p) - coupled) == stable


def test_adam_without_decay_has_the_formula_of_cohen_et_al() -> None:
    optimizer = torch.optim.AdamW([parameter()], lr=LR, betas=(0.9, 0.999), weight_decay=0.0)
    assert stability_threshold(optimizer) == pytest.approx(3.8 / (0.1 * LR))


def test_the_preconditioner_reproduces_the_step() -> None:
    """t moves by -lr m/P, also in the first steps."""
    model = nn.Linear(3, 2).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, amsgrad=True)
    assert preconditioner(optimizer, model) is None
    for _ in range(3):
        before = [p.detach().clone() for p in model.parameters()]
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        diagonal = preconditioner(optimizer, model)
        for old, new, d in zip(before, model.parameters(), diagonal, strict=True):
            expected = old - LR * optimizer.state[new]["exp_avg"] / d
            assert torch.allclose(new, expected, rtol=1e-9)


def test_preconditioned_sharpness_of_a_quadratic() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.t.expand(len(inputs), -1)

    model, h, p = Two(), torch.tensor([6.0, 5.0]).double(), torch.tensor([3.0, 0.5]).double()
    blocks = [(torch.zeros(2, 1), torch.zeros(2))]
    objective = FullBatchObjective(model, lambda t, _: (h * t.square()).sum(dim=1).mean() / 2, blocks)
    pairs = largest_eigenpairs(curvature(objective, preconditioner=[p]), 2)
    assert pairs.values.tolist() == pytest.approx([10.0, 2.0])


def test_optimizers_with_a_search_clipping_or_perturbation_have_no_threshold() -> None:
    make = parameter
    for optimizer in (
        Descent([make()], LR, step_rule=Wolfe()),
        SAM(Descent([make()], LR)),
        ClippedDescent([make()], LR),
        FISTA([make()], LR),
        LBFGS([make()], LR),
    ):
        assert not has_threshold(optimizer)
        assert stability_threshold(optimizer) is None
    assert has_threshold(Descent([make()], LR, momentum=0.9, step_rule=Restarting()))
    assert stability_threshold(Descent([make()], 0.0)) is None
    assert not is_adaptive(Descent([make()], LR))


def test_each_group_has_its_own_decay() -> None:
    model = nn.Linear(2, 2)
    groups = [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}]
    assert decay_of_loss(Descent(groups, LR, weight_decay=0.3), model) == [0.3, 0.0]
    assert decay_of_loss(torch.optim.AdamW(groups, LR, weight_decay=0.3), model) == [0.0, 0.0]
    assert math.isclose(stability_threshold(Descent(groups, LR)), 20)
