"""Builds optimizers from settings: a table of optimizers, one of step rules and one of wrappers."""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fullbatch.build.precision import is_regularized
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
from fullbatch.runtime.imports import call_user_code, import_object, takes
from fullbatch.settings import Hyp, optim

log = logging.getLogger(__name__)

Groups = list[dict[str, Any]]
OF_TORCH = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
}


def build_optimizer(hyp: Hyp, model: nn.Module) -> Optimizer:
    """Build the optimizer of the model's trainable parameters and its wrapper."""
    groups = parameter_groups(model, only_linear_layers=hyp.only_linear_layers_weight_decay)
    if isinstance(hyp.optim, optim.AdaptivelyClippedDescent):
        linear = {parameter for name, parameter in model.named_parameters() if name.startswith("linear")}
        groups = _without_clipping(linear, groups)
    if isinstance(hyp.optim, optim.UserOptimizer):
        optimizer = _of_user(groups, hyp.optim)
        _require_learning_rate(hyp, optimizer)
    else:
        optimizer = OPTIMIZERS[hyp.optim.name](groups, hyp.optim)
    return MODIFICATIONS[hyp.optim_modification.name](optimizer, hyp.optim_modification)


def _without_clipping(exempt: set[nn.Parameter], groups: Groups) -> Groups:
    """Split each group, so that the gradients of ``exempt`` are not clipped."""
    split: Groups = []
    for group in groups:
        clipped = [p for p in group["params"] if p not in exempt]
        others = [p for p in group["params"] if p in exempt]
        split += [{**group, "params": clipped}, {**group, "params": others, "clipping": None}]
    return [group for group in split if group["params"]]


def _adam(groups: Groups, settings: optim.Adam) -> Optimizer:
    options = dataclasses.asdict(settings)
    options.pop("name")
    on_cuda = groups[0]["params"][0].device.type == "cuda"
    return torch.optim.AdamW(groups, foreach=not on_cuda, fused=on_cuda, **options)


def _fista(groups: Groups, settings: optim.Fista) -> Optimizer:
    projection = None if settings.projection is None else PROJECTIONS[settings.projection](settings.radius)
    for group in groups:
        group.pop("weight_decay", None)  # FISTA has no weight decay
    return FISTA(groups, settings.lr, settings.fista_mod, projection, settings.restart)


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


def _of_user(groups: Groups, settings: optim.UserOptimizer) -> Optimizer:
    """Build an optimizer of torch.optim or of the user from the arguments that are given."""
    key = "hyp.optim"
    if isinstance(settings, optim.ImportedOptimizer):
        constructor = import_object(f"{key}.target", settings.target)
    else:
        assert isinstance(settings, optim.TorchOptimizer)
        constructor = OF_TORCH.get(settings.name.lower())
        if constructor is None:
            known = ", ".join(sorted(value.__name__ for value in OF_TORCH.values()))
            raise ValueError(f"{key}.name={settings.name}: not an optimizer of torch.optim; known: {known}")
    given = {
        name: value for name in ("lr", "momentum", "weight_decay") if (value := getattr(settings, name)) is not None
    }
    if twice := given.keys() & settings.args:
        raise ValueError(f"{key}.args: {', '.join(twice)} is also given by {key}.{min(twice)}")
    if any("weight_decay" in group for group in groups) and not takes(constructor, "weight_decay"):
        raise ValueError(f"hyp.only_linear_layers_weight_decay: {settings.name} takes no weight_decay")
    optimizer = call_user_code(key, constructor, groups, **given, **settings.args)
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"{key}: {settings.name} returned {type(optimizer).__name__}, not a torch.optim.Optimizer")
    return optimizer


def _require_learning_rate(hyp: Hyp, optimizer: Optimizer) -> None:
    """Raise ``ValueError`` where an optimizer has no learning rate and the regularizer needs one."""
    if all("lr" in group for group in optimizer.param_groups):
        return
    name = type(optimizer).__name__
    if is_regularized(hyp):
        raise ValueError(f"hyp.grad_reg: needs the learning rate of the optimizer, and {name} has none")
    if hyp.scheduler or hyp.warmup:
        log.warning("hyp.scheduler and hyp.warmup have no effect: %s has no learning rate", name)


def _momentum(settings: optim.Momentum) -> dict[str, Any]:
    return {
        "lr": settings.lr,
        "momentum": settings.momentum,
        "dampening": settings.dampening,
        "weight_decay": settings.weight_decay,
        "nesterov": settings.nesterov and settings.momentum != 0,  # without momentum Nesterov's step is the plain one
    }


OPTIMIZERS: dict[str, Callable[[Groups, Any], Optimizer]] = {
    "gd": lambda groups, s: Descent(groups, **_momentum(s), step_rule=STEP_RULES[s.line_search](s)),
    "adam": _adam,
    "fista": _fista,
    "gd_agc": lambda groups, s: AdaptivelyClippedDescent(groups, **_momentum(s), clipping=s.clipping, eps=s.eps),
    "gd_clip": lambda groups, s: ClippedDescent(
        groups, **_momentum(s), interval=s.interval, norm_type=math.inf if s.norm_type == "inf" else 2.0
    ),
    "lbfgs": _lbfgs,
}

STEP_RULES: dict[str | None, Callable[[optim.GradientDescent], StepRule]] = {
    None: lambda s: StepRule(),
    "wolfe": lambda s: Wolfe(s.c1, s.c2, s.alpha_max, s.max_iter),
    "non-monotone": lambda s: NonMonotone(s.c1, s.interval, s.factor, s.max_iter),
    "restarting": lambda s: Restarting(),
}

MODIFICATIONS: dict[str, Callable[[Optimizer, Any], Optimizer]] = {
    "none": lambda base, s: base,
    "lars": lambda base, s: LARS(base, s.trust_coefficient, s.eps),
    "larc": lambda base, s: LARS(base, s.trust_coefficient, s.eps, clip=True),
    "sam": lambda base, s: SAM(base, s.rho),
    "asam": lambda base, s: ASAM(base, s.rho, s.eta),
}
