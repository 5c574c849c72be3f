"""Small trainers for every optimizer and wrapper."""

from composing import settings_for
from small_training import loader, trainer
from torch import nn

from fullbatch.build.optimizer import build_optimizer
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.losses import loss_function
from fullbatch.optim.ema import ExponentialMovingAverage
from fullbatch.training.trainer import Trainer

CASES = {
    "gd": [],
    "gd, wolfe": ["hyp.optim.line_search=wolfe", "hyp.optim.lr=1.0"],
    "gd, non-monotone": ["hyp.optim.line_search=non-monotone", "hyp.optim.lr=3.0"],
    "gd, restarting": ["hyp.optim.line_search=restarting"],
    "adam": ["hyp/optim=adam"],
    "fista": ["hyp/optim=fista", "hyp.optim.restart=True", "hyp.optim.projection=box"],
    "gd_agc": ["hyp/optim=gd_agc"],
    "gd_clip": ["hyp/optim=gd_clip"],
    "lbfgs": ["hyp/optim=lbfgs", "hyp.optim.history_size=3"],
    "lbfgs, armijo": ["hyp/optim=lbfgs", "hyp.optim.line_search=Armijo"],
    "LARS": ["hyp/optim_modification=LARS"],
    "LARC, adam": ["hyp/optim=adam", "hyp/optim_modification=LARC"],
    "SAM, gd_clip": ["hyp/optim=gd_clip", "hyp/optim_modification=SAM"],
    "ASAM, fista": ["hyp/optim=fista", "hyp/optim_modification=ASAM"],
}


def built(overrides: list[str], seed: int = 0) -> Trainer:
    """Return the small trainer with all options except noise, which excludes line searches."""
    some_trainer = trainer(6, seed=seed)
    state, step = some_trainer.state, some_trainer.step
    optimizer = build_optimizer(settings_for("hyp=fb1", *overrides).hyp, state.model)
    state.optimizer = optimizer
    step.objective.regularizer.optimizer = optimizer
    step.transforms = step.transforms[:1]
    return some_trainer


def always_the_same(overrides: list[str], seed: int = 0) -> Trainer:
    """Return a trainer whose steps all have the same objective."""
    some_trainer = built(overrides, seed)
    step = some_trainer.step
    step.data = loader(augmentation=None)  # the same in every step
    objective = step.objective
    objective.model[1], objective.model[3] = nn.Identity(), nn.Identity()
    step.objective = FullBatchObjective(objective.model, loss_function(), [], sub_batch=8)
    optimizer = build_optimizer(settings_for("hyp=fb1", *overrides).hyp, objective.model)
    some_trainer.state.optimizer = optimizer
    some_trainer.state.ema = ExponentialMovingAverage(objective.model, 0.9)
    return some_trainer
