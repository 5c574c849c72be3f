"""Every optimizer finds the minimum of a logistic regression that SciPy finds; one entry per optimizer."""

from collections.abc import Callable

import pytest
import torch
from optimization import as_numpy, logistic_regression, minimize
from scipy.optimize import minimize as scipy_minimize
from torch.optim import Optimizer

from fullbatch.optim.adaptive_clipping import ClippedDescent
from fullbatch.optim.agc import AdaptivelyClippedDescent
from fullbatch.optim.descent import Descent
from fullbatch.optim.fista import FISTA
from fullbatch.optim.lars import LARS
from fullbatch.optim.lbfgs import LBFGS
from fullbatch.optim.line_search import NonMonotone, Restarting
from fullbatch.optim.sam import ASAM, SAM
from fullbatch.optim.wolfe import Wolfe

Build = Callable[..., Optimizer]
MOMENTUM = {"momentum": 0.9, "nesterov": True}

EXACT: dict[str, tuple[Build, int, float]] = {
    "gd": (lambda p: Descent(p, 0.5, **MOMENTUM), 150, 1e-4),
    "gd, wolfe": (lambda p: Descent(p, 0.5, **MOMENTUM, step_rule=Wolfe()), 300, 1e-8),
    "gd, non-monotone": (lambda p: Descent(p, 2.0, **MOMENTUM, step_rule=NonMonotone()), 150, 1e-8),
    "gd, restarting": (lambda p: Descent(p, 1.0, **MOMENTUM, step_rule=Restarting()), 150, 1e-8),
    "lbfgs, wolfe": (LBFGS, 20, 1e-8),
    "lbfgs, armijo": (lambda p: LBFGS(p, step_rule=NonMonotone(interval=1, factor=0.5)), 20, 1e-8),
    "fista": (lambda p: FISTA(p, 1.0), 600, 1e-8),
    "fista, restart": (lambda p: FISTA(p, 1.0, restart=True), 150, 1e-8),
    "gd_clip": (lambda p: ClippedDescent(p, 0.5, **MOMENTUM), 150, 1e-4),
    "adam": (lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.0), 300, 1e-4),
}
"""name -> (optimizer, steps, largest distance of the loss from the minimum)."""

BIASED: dict[str, tuple[Build, int]] = {
    "gd_agc": (lambda p: AdaptivelyClippedDescent(p, 0.5, **MOMENTUM, clipping=0.5), 150),
    "LARS": (lambda p: LARS(Descent(p, 1.0, **MOMENTUM)), 150),
    "LARC": (lambda p: LARS(Descent(p, 0.1, **MOMENTUM), clip=True), 300),
    "SAM": (lambda p: SAM(Descent(p, 0.5, **MOMENTUM)), 150),
    "ASAM": (lambda p: ASAM(Descent(p, 0.5, **MOMENTUM), rho=0.05), 150),
}
"""Optimizers of another objective or with clipped or scaled steps: they only reduce the loss."""


@pytest.fixture(scope="module")
def minimum() -> float:
    function, start = logistic_regression()
    result = scipy_minimize(as_numpy(function), start.numpy(), jac=True, method="L-BFGS-B", options={"gtol": 1e-12})
    return float(result.fun)


@pytest.mark.parametrize("name", EXACT)
def test_it_finds_the_optimum_of_scipy(name: str, minimum: float) -> None:
    (build, steps, tolerance), (function, start) = EXACT[name], logistic_regression()
    losses = minimize(function, start, build, steps)[1]
    assert abs(losses[-1] - minimum) <= tolerance


@pytest.mark.parametrize("name", BIASED)
def test_it_reduces_the_excess_loss_by_90_percent(name: str, minimum: float) -> None:
    (build, steps), (function, start) = BIASED[name], logistic_regression()
    losses = minimize(function, start + 3, build, steps)[1]  # far from the optimum and not at 0, where LARS would stay
    assert losses[-1] - minimum <= 0.1 * (losses[0] - minimum)
