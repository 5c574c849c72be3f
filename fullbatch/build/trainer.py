"""From settings to objects."""

import dataclasses
import logging
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from fullbatch.build.data import Stream, about, build_data, build_loader, build_loss
from fullbatch.build.optimizer import build_optimizer
from fullbatch.build.precision import (
    build_compiled,
    build_loss_scale,
    build_precision,
    build_recorder,
    build_streams,
    regularized,
    subtracts_gradients,
    warn_of_rounding,
)
from fullbatch.data.dataset import ImageData
from fullbatch.models.compatibility import check_compatible
from fullbatch.models.registry import build_model as model_named
from fullbatch.objective.determinism import determinism_culprit
from fullbatch.objective.evaluations import LossEvaluation
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.objective.hessian_products import implementation_named
from fullbatch.objective.losses import loss_function
from fullbatch.optim.ema import ExponentialMovingAverage
from fullbatch.optim.schedules import schedule_named
from fullbatch.randomness import seeded
from fullbatch.runtime.device import DTYPES, find_device, set_up
from fullbatch.runtime.memory_format import MEMORY_FORMATS, order_weights
from fullbatch.runtime.process_group import ALONE, Group
from fullbatch.settings import Hyp, Run
from fullbatch.tensors import device_of
from fullbatch.training.distributed_pass import DistributedPass
from fullbatch.training.state import TrainState
from fullbatch.training.step import BlockSequence, Step
from fullbatch.training.stopping import StopRule, evaluation_budget, full_accuracy
from fullbatch.training.trainer import Trainer
from fullbatch.training.validation import Validate, validate
from fullbatch.transforms.chain import GradientTransform
from fullbatch.transforms.clipping import ClipByNorm
from fullbatch.transforms.noise import AdditiveNoise, MultiplicativeNoise
from fullbatch.transforms.norm_bias import NormBias
from fullbatch.typing import Blocks

log = logging.getLogger(__name__)


def set_up_machine(run: Run, processes: int = 1) -> None:
    """Set PyTorch's global flags as the settings say, for one of several ``processes`` of this machine."""
    impl = run.impl
    tf32 = not subtracts_gradients(run.hyp) if impl.tf32 == "auto" else impl.tf32
    set_up(
        threads=impl.threads,
        benchmark=impl.benchmark,
        deterministic=impl.deterministic,
        processes=processes,
        tf32=tf32,
    )


def build_trainer(run: Run, seed: int, group: Group = ALONE) -> Trainer:
    """Build all of a run that writes no files; ``ValueError`` and ``OSError`` for the user's mistakes."""
    with about("impl"):
        device = find_device(run.impl.device, group.ranks.local_rank if group.size > 1 else None)
    data = build_data(run, seed)
    model = build_model(run, data, seed, device)
    optimizer = build_optimizer(run.hyp, model)
    ema = ExponentialMovingAverage(model, run.hyp.eval_ema_momentum) if run.hyp.evaluate_ema else None
    with about("hyp.scheduler"):
        schedule = schedule_named(run.hyp.scheduler, run.hyp.steps, run.hyp.warmup)
    require_sharable(run.hyp, model, group.size)
    step = build_step(run, data, model, optimizer, seed)
    step.passes = DistributedPass(group)
    valid = build_loader(run, data, data.valid, seed, device).blocks(0)[_part(run)]
    for blocks in (step.data.blocks(0), valid):
        inputs = next(iter(blocks[:1])).inputs[:1]
        with about("model"):
            check_compatible(model, inputs, len(data.classes))
    build_compiled(run, step)
    return Trainer(
        state=TrainState(model, optimizer, ema),
        take_step=step,
        steps=1 if run.dryrun else run.hyp.steps,
        schedule=schedule,
        validate=build_validation(run, valid, step, group),
        stochastic=build_mode(run.hyp),
        stop_rules=build_stop_rules(run.hyp),
        validate_every=run.impl.validate_every_nth_step,
        save_every=run.impl.checkpoint.save_every_nth_step,
    )


def check_determinism(trainer: Trainer) -> None:
    """Evaluate the next step's objective twice; ``ValueError`` names what makes the difference."""
    number = trainer.state.step
    trainer.state.model.train()
    culprit = determinism_culprit(trainer.take_step.objective_at(number))
    if culprit is not None:
        raise ValueError(f"impl.check_determinism: two evaluations of step {number + 1} differ because of {culprit}")
    log.info("two evaluations of step %d agree bitwise", number + 1)


def build_model(run: Run, data: ImageData, seed: int, device: torch.device) -> nn.Module:
    """Build the model with its own random numbers, on the device."""
    options = dataclasses.asdict(run.model)
    family = options.pop("family", None) or options.pop("name")
    with about("model"), seeded(Stream.WEIGHTS.seed(seed), torch.device("cpu")):
        model = model_named(family, channels=data.channels, classes=len(data.classes), pixels=data.pixels, **options)
    model.to(device=device, dtype=DTYPES[run.impl.dtype])
    return order_weights(model, MEMORY_FORMATS[run.impl.memory])


def build_step(run: Run, data: ImageData, model: nn.Module, optimizer: Optimizer, seed: int) -> Step:
    """Build what takes a step: the objective, the transforms of its gradient, and the blocks."""
    hyp = run.hyp
    loader = build_loader(run, data, data.train, seed, device_of(model))
    return Step(
        build_objective(run, model, optimizer, loader.blocks(0)),
        optimizer,
        build_transforms(hyp),
        loader,
        shuffle=hyp.shuffle,
        with_replacement=hyp.sample_with_replacement,
        blocks_per_update=hyp.blocks_per_update,
        seed=Stream.NOISE.seed(seed),
        max_blocks=1 if run.dryrun else None,
        constant_data=loader.augmentation is None and loader.rounds == 1,
    )


def build_objective(run: Run, model: nn.Module, optimizer: Optimizer, blocks: Blocks) -> FullBatchObjective:
    """Build the training objective with its regularizer."""
    hyp, low_precision, loss_scale = run.hyp, build_precision(run, device_of(model)), build_loss_scale(run)
    loss_fn = build_loss(hyp)
    regularizer = None
    warn_of_rounding(run, low_precision)
    with about("hyp.grad_reg"):
        implementation_named(hyp.grad_reg.implementation)  # a wrong name is refused in any case
        if regularized(hyp):
            regularizer = GradRegularizer(
                model,
                optimizer,
                loss_fn,
                mixed_precision=low_precision,
                loss_scale=loss_scale,
                **dataclasses.asdict(hyp.grad_reg),
            )
    return FullBatchObjective(
        model,
        loss_fn,
        blocks,
        sub_batch=hyp.sub_batch,
        copies=loss_fn.copies,
        regularizer=regularizer,
        batch_clip=hyp.batch_clip,
        batch_clip_norm=norm_order(hyp),
        mixed_precision=low_precision,
        loss_scale=loss_scale,
        accumulation_dtype=DTYPES[run.impl.accumulation_dtype],
        gradient_average=hyp.gradient_average,
        recorder=build_recorder(run, device_of(model)),
        streams=build_streams(run, device_of(model)),
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
    return transforms


def require_sharable(hyp: Hyp, model: nn.Module, size: int) -> None:
    """Raise ``ValueError`` for what ``size`` processes together cannot do as one does."""
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


def build_validation(run: Run, blocks: BlockSequence, step: Step, group: Group = ALONE) -> Validate:
    """Build what evaluates a model on the validation set, each process on its share of the blocks."""
    hyp = run.hyp
    plain_loss = loss_function("squared" if hyp.loss_modification == "squared" and not hyp.test_time_flips else None)

    def shared(some_blocks: BlockSequence) -> BlockSequence:
        return some_blocks[group.share(len(some_blocks))]

    def validation(model: nn.Module, step_number: int) -> LossEvaluation:
        training = step.data.blocks(step_number)[_part(run)]
        return validate(
            model,
            plain_loss,
            shared(blocks),
            flips=hyp.test_time_flips,
            recalibration=shared(training) if hyp.recalibrate_batchnorm else None,
            mixed_precision=build_precision(run, device_of(model)),
            all_reduce=group.reduce,
        )

    return validation


def _part(run: Run) -> slice:
    return slice(1 if run.dryrun else None)


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


def norm_order(hyp: Hyp) -> float:
    """Return the order of the norm that is clipped."""
    return math.inf if hyp.grad_clip_norm == "inf" else 2.0
