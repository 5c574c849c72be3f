"""From settings to the training of a problem: state, step, plan and validation."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fullbatch.build.data import Stream, about, build_data, build_loader, build_loss
from fullbatch.build.precision import build_arithmetic, build_compiled, is_regularized
from fullbatch.build.problem import (
    Problem,
    build_model,
    build_problem,
    norm_order,
    require_compatible,
    set_up_machine,
)
from fullbatch.build.user_code import build_transforms as build_user_transforms
from fullbatch.data.loader import BlockLoader
from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.determinism import determinism_culprit
from fullbatch.objective.evaluations import LossEvaluation
from fullbatch.objective.hessian_products import implementation_named
from fullbatch.objective.losses import CrossEntropy, Loss, SquaredDistance, mean
from fullbatch.optim.ema import ExponentialMovingAverage
from fullbatch.optim.schedules import schedule_named
from fullbatch.runtime.device import find_device
from fullbatch.runtime.process_group import ALONE, Group
from fullbatch.settings import Hyp, Run
from fullbatch.training.distributed_pass import DistributedPass, Requests
from fullbatch.training.state import TrainState
from fullbatch.training.step import BlockSequence, Sampling, Step
from fullbatch.training.stopping import StopRule, evaluation_budget, full_accuracy
from fullbatch.training.trainer import Trainer, TrainingPlan
from fullbatch.training.validation import Validate, validate
from fullbatch.transforms.chain import GradientTransform
from fullbatch.transforms.clipping import ClipByNorm
from fullbatch.transforms.noise import AdditiveNoise, MultiplicativeNoise
from fullbatch.transforms.norm_bias import NormBias

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """A problem with all that its trainer needs, except for what observes and saves the run."""

    problem: Problem
    state: TrainState
    step: Step
    plan: TrainingPlan
    validate: Validate

    def trainer(self, **options: Any) -> Trainer:
        """Return the trainer; ``options`` are its probes, observers, save and request."""
        return Trainer(self.state, self.step, self.plan, validate=self.validate, **options)

    @property
    def is_done(self) -> bool:
        """Whether all steps are taken."""
        return self.plan.is_done(self.state)

    def check_determinism(self) -> None:
        """Evaluate the next step's objective twice; ``ValueError`` names what makes the difference."""
        number = self.state.step
        self.state.model.train()
        culprit = determinism_culprit(self.step.objective_at(number))
        if culprit is not None:
            raise ValueError(f"impl.check_determinism: evaluations of step {number + 1} differ because of {culprit}")
        log.info("two evaluations of step %d agree bitwise", number + 1)


def build_training(run: Run, seed: int, group: Group = ALONE, requests: Requests | None = None) -> Training:
    """Build all of a run that writes no files; ``ValueError`` and ``OSError`` for the user's mistakes.

    Args:
        run: the settings.
        seed: of the run.
        group: the processes that share the run.
        requests: requests to save or to stop inside a step.
    """
    hyp, impl = run.hyp, run.impl
    problem = build_problem(run, seed, group)
    with about("hyp.scheduler"):
        schedule = schedule_named(hyp.scheduler, hyp.steps, hyp.warmup)
    require_sharable(hyp, problem.model, group.size)
    ema = ExponentialMovingAverage(problem.model, hyp.eval_ema_momentum) if hyp.evaluate_ema else None
    state = TrainState(problem.model, problem.optimizer, ema)
    step = build_step(problem, state, DistributedPass(group, requests))
    valid_loader = build_loader(run, problem.data, problem.data.valid, seed, problem.device)
    valid = valid_loader.blocks(0)[: problem.max_blocks]
    require_compatible(problem.model, valid, len(problem.data.classes))
    problem.check_smallest_sub_batch()
    build_compiled(run, problem.objective.over(problem.loader.blocks(0)[:1]))
    if is_regularized(hyp) and implementation_named(hyp.grad_reg.implementation).exact:
        with about("hyp.grad_reg.implementation"):  # an operation may have no second derivative
            problem.objective.over([next(problem.objective.sub_batches())]).evaluate()
    plan = TrainingPlan(
        steps=1 if run.dryrun else hyp.steps,
        schedule=schedule,
        stochastic=build_mode(hyp),
        stop_rules=build_stop_rules(hyp),
        validate_every=impl.validate_every_nth_step,
        save_every=impl.checkpoint.save_every_nth_step,
    )
    validation = build_validation(hyp, valid, problem.loader, problem.arithmetic, problem.max_blocks, group)
    return Training(problem, state, step, plan, validation)


def build_step(problem: Problem, state: TrainState, block_pass: DistributedPass | None = None) -> Step:
    """Build the step: the objective, the transforms of its gradient, and the blocks."""
    hyp = problem.run.hyp
    return Step(
        state,
        problem.objective,
        problem.loader,
        transforms=build_transforms(hyp),
        sampling=Sampling(hyp.shuffle, hyp.sample_with_replacement, hyp.blocks_per_update, problem.max_blocks),
        seed=Stream.NOISE.seed(problem.seed),
        block_pass=block_pass,
    )


def build_transforms(hyp: Hyp) -> list[GradientTransform]:
    """Build the transforms of the gradient, in the order in which they act."""
    transforms: list[GradientTransform] = []
    if hyp.norm_bias.strength != 0:
        transforms.append(NormBias(hyp.norm_bias.strength, hyp.norm_bias.norm_type, hyp.norm_bias.bias))
    if hyp.grad_clip is not None:
        transforms.append(ClipByNorm(hyp.grad_clip, norm_order(hyp)))
    if hyp.grad_noise.additive:
        transforms.append(AdditiveNoise(hyp.grad_noise.additive))
    if hyp.grad_noise.multiplicative:
        transforms.append(MultiplicativeNoise(hyp.grad_noise.multiplicative))
    return [*transforms, *build_user_transforms(hyp.transforms)]


def require_sharable(hyp: Hyp, model: nn.Module, size: int) -> None:
    """Raise ``ValueError`` for settings under which ``size`` processes cannot compute what one does."""
    if size == 1:
        return
    if hyp.gradient_average == "moving":
        raise ValueError(f"hyp.gradient_average=moving: needs the order of the sub-batches, so one process, not {size}")
    ever_stochastic = hyp.train_stochastic or hyp.train_switch_stochastic is not None
    if ever_stochastic and hyp.blocks_per_update % size:
        raise ValueError(
            f"hyp.blocks_per_update={hyp.blocks_per_update}: {size} processes share the blocks of an update; "
            f"accepted: multiples of {size}"
        )
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise ValueError("model.normalization=SyncBatchNorm: statistics are a sub-batch's own; accepted: BatchNorm2d")


def build_evaluation(run: Run, seed: int) -> tuple[nn.Module, Validate]:
    """Build the model with initial weights, and its validation, without reading training images that are not needed."""
    set_up_machine(run)
    with about("impl"):
        device = find_device(run.impl.device)
    data = build_data(run, seed, training=run.hyp.recalibrate_batchnorm)
    model = build_model(run, data, seed, device)
    max_blocks = 1 if run.dryrun else None
    valid = build_loader(run, data, data.valid, seed, device).blocks(0)[:max_blocks]
    require_compatible(model, valid, len(data.classes))
    training = build_loader(run, data, data.train, seed, device) if run.hyp.recalibrate_batchnorm else None
    return model, build_validation(run.hyp, valid, training, build_arithmetic(run, device), max_blocks)


def build_validation(
    hyp: Hyp,
    blocks: BlockSequence,
    training: BlockLoader | None,
    arithmetic: Arithmetic,
    max_blocks: int | None = None,
    group: Group = ALONE,
) -> Validate:
    """Build the evaluation of a model on the validation set, each process on its share of the blocks.

    Args:
        hyp: the settings of the training.
        blocks: of the validation set.
        training: the training set, used with ``hyp.recalibrate_batchnorm``.
        arithmetic: of the evaluation.
        max_blocks: number of blocks of the training set that are used; None means all.
        group: the processes that share the evaluation.
    """
    per_sample = build_loss(hyp).per_sample
    if isinstance(per_sample, SquaredDistance) and not hyp.test_time_flips:
        per_sample = SquaredDistance()
    elif isinstance(per_sample, CrossEntropy | SquaredDistance):
        per_sample = CrossEntropy()
    plain_loss = Loss(per_sample, mean)

    def shard(all_blocks: BlockSequence) -> BlockSequence:
        return all_blocks[group.share(len(all_blocks))]

    def validation(model: nn.Module, step_number: int) -> LossEvaluation:
        recalibration = None
        if hyp.recalibrate_batchnorm and training is not None:
            recalibration = shard(training.blocks(step_number)[:max_blocks])
        return validate(
            model,
            plain_loss,
            shard(blocks),
            flips=hyp.test_time_flips,
            recalibration=recalibration,
            arithmetic=arithmetic,
            all_reduce=group.reduce,
        )

    return validation


def build_mode(hyp: Hyp) -> Callable[[int], bool]:
    """Return whether a step is stochastic: as configured, and the other way from ``train_switch_stochastic`` on."""
    switch = hyp.train_switch_stochastic
    return lambda step: hyp.train_stochastic != (switch is not None and step >= switch)


def build_stop_rules(hyp: Hyp) -> list[StopRule]:
    """Build the rules that end a run early."""
    rules = []
    if hyp.stop_at_full_training_accuracy:
        rules.append(full_accuracy(hyp.stop_at_full_training_accuracy))
    if hyp.max_evaluations is not None:
        rules.append(evaluation_budget(hyp.max_evaluations))
    return rules
