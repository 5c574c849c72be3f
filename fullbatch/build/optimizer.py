"""From settings to optimizers: a table of optimizers and a table of what may wrap them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fullbatch.optim.adaptive_clipping import ClippedDescent
from fullbatch.optim.agc import AdaptivelyClippedDescent
from fullbatch.optim.descent import Descent
from fullbatch.optim.fista import FISTA, PROJECTIONS
from fullbatch.optim.lars import LARS
from fullbatch.optim.lbfgs import LBFGS
from fullbatch.optim.line_search import NonMonotone, Restarting, StepRule
from fullbatch.optim.sam import ASAM, SAM
from fullbatch.optim.weight_decay import parameter_groups
from fullbatch.optim.wolfe import Wolfe
from fullbatch.settings import Hyp, optim

Groups = list[dict[str, Any]]


def build_optimizer(hyp: Hyp, model: nn.Module) -> Optimizer:
    """Build the optimizer, weight decay where it applies, and what wraps it."""
    groups = parameter_groups(model, only_linear_layers=hyp.only_linear_layers_weight_decay)
    if isinstance(hyp.optim, optim.AdaptivelyClippedDescent):
        groups = _exempt_linear(groups, model)
    optimizer = OPTIMIZERS[hyp.optim.name](groups, hyp.optim)
    return MODIFICATIONS[hyp.optim_modification.name](optimizer, hyp.optim_modification)


def _gradient_descent(groups: Groups, settings: optim.GradientDescent) -> Optimizer:
    return Descent(groups, **_momentum(settings), search=SEARCHES[settings.line_search](settings))


def _adam(groups: Groups, settings: optim.Adam) -> Optimizer:
    options = dataclasses.asdict(settings)
    options.pop("name")
    on_cuda = groups[0]["params"][0].device.type == "cuda"
    return torch.optim.AdamW(groups, foreach=not on_cuda, fused=on_cuda, **options)


def _fista(groups: Groups, settings: optim.Fista) -> Optimizer:
    projection = None if settings.projection is None else PROJECTIONS[settings.projection](settings.radius)
    for group in groups:
        group.pop("weight_decay", None)  # FISTA has none to exempt from
    return FISTA(groups, settings.lr, settings.fista_mod, projection, settings.restart)


def _agc(groups: Groups, settings: optim.AdaptivelyClippedDescent) -> Optimizer:
    return AdaptivelyClippedDescent(groups, **_momentum(settings), clipping=settings.clipping, eps=settings.eps)


def _clipped(groups: Groups, settings: optim.ClippedDescent) -> Optimizer:
    order = math.inf if settings.norm_type == "inf" else 2.0
    return ClippedDescent(groups, **_momentum(settings), interval=settings.interval, norm_type=order)


def _lbfgs(groups: Groups, settings: optim.LBFGS) -> Optimizer:
    trials = settings.max_linesearches
    searches: dict[str, StepRule] = {
        "wolfe": Wolfe(settings.c1, settings.c2, alpha_max=math.inf, max_iter=trials),
        "armijo": NonMonotone(settings.c1, interval=1, factor=1 / settings.eta, max_iter=trials),
    }
    return LBFGS(
        groups,
        settings.lr,
        settings.weight_decay,
        settings.history_size,
        settings.eps,
        settings.damping,
        searches[settings.line_search],
    )


def _momentum(settings: optim.Momentum) -> dict[str, Any]:
    return {
        "lr": settings.lr,
        "momentum": settings.momentum,
        "dampening": settings.dampening,
        "weight_decay": settings.weight_decay,
        "nesterov": settings.nesterov and settings.momentum != 0,  # without momentum Nesterov's step is the plain one
    }


def _exempt_linear(groups: Groups, model: nn.Module) -> Groups:
    """Split each group, so that parameters whose name starts with ``linear`` are not clipped."""
    exempt = {parameter for name, parameter in model.named_parameters() if name.startswith("linear")}
    parts = [
        {
            **group,
            "params": [p for p in group["params"] if (p in exempt) == free],
            **({"clipping": None} if free else {}),
        }
        for group in groups
        for free in (False, True)
    ]
    return [part for part in parts if part["params"]]


OPTIMIZERS: dict[str, Callable[[Groups, Any], Optimizer]] = {
    "gd": _gradient_descent,
    "adam": _adam,
    "fista": _fista,
    "gd_agc": _agc,
    "gd_clip": _clipped,
    "lbfgs": _lbfgs,
}

SEARCHES: dict[str | None, Callable[[optim.GradientDescent], StepRule]] = {
    None: lambda settings: StepRule(),
    "wolfe": lambda settings: Wolfe(settings.c1, settings.c2, settings.alpha_max, settings.max_iter),
    "non-monotone": lambda settings: NonMonotone(settings.c1, settings.interval, settings.factor, settings.max_iter),
    "restarting": lambda settings: Restarting(),
}

MODIFICATIONS: dict[str, Callable[[Optimizer, Any], Optimizer]] = {
    "none": lambda base, settings: base,
    "lars": lambda base, settings: LARS(base, settings.trust_coefficient, settings.eps),
    "larc": lambda base, settings: LARS(base, settings.trust_coefficient, settings.eps, clip=True),
    "sam": lambda base, settings: SAM(base, settings.rho),
    "asam": lambda base, settings: ASAM(base, settings.rho, settings.eta),
}
