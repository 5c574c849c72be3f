"""From settings to the problem that is solved: device, arithmetic, data, model, optimizer and objective."""

import dataclasses
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from fullbatch.build.data import Stream, about, build_data, build_loader, build_loss
from fullbatch.build.optimizer import build_optimizer
from fullbatch.build.precision import build_arithmetic, is_regularized, subtracts_gradients, warn_of_rounding
from fullbatch.data.images import ImageData
from fullbatch.data.loader import BlockLoader
from fullbatch.models.compatibility import check_compatible
from fullbatch.models.model_file import read_model
from fullbatch.models.registry import build_model as model_named
from fullbatch.models.weights import load_weights
from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradientPenalty
from fullbatch.objective.hessian_products import implementation_named
from fullbatch.randomness import seeded
from fullbatch.runtime.device import find_device, set_up
from fullbatch.runtime.memory_format import MEMORY_FORMATS, order_weights
from fullbatch.runtime.process_group import ALONE, Group
from fullbatch.settings import Hyp, Run
from fullbatch.tensors import device_of, mode, preserved
from fullbatch.training.step import BlockSequence
from fullbatch.transforms.clipping import ClipByNorm
from fullbatch.typing import Block

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """The objective of a run, and the parts of which it is made.

    ``objective`` is over the blocks of step 0; in a dry run over the first block alone.
    """

    run: Run
    seed: int
    device: torch.device
    arithmetic: Arithmetic
    data: ImageData
    model: nn.Module
    optimizer: Optimizer
    loader: BlockLoader
    objective: FullBatchObjective
    max_blocks: int | None = None
    """The number of blocks of a step that are used: one in a dry run, else all."""

    def check_smallest_sub_batch(self) -> None:
        """Raise ``ValueError`` where the model cannot be trained on the smallest sub-batch of a step."""
        data, sub_batch = self.run.data, self.run.hyp.sub_batch
        sizes = self.loader.blocks(0).sizes
        rows = self.objective.copies * min(size // max(size // sub_batch, 1) for size in sizes)
        first, evaluate = (
            next(self.objective.sub_batches()),
            replace(self.objective.sub_batch_objective, first_pass=None),
        )
        if rows >= len(first.labels):
            return
        try:
            with mode(self.model, training=True), preserved(list(self.model.buffers())):
                evaluate.loss(Block(first.inputs[:rows], first.labels[:rows], first.key))
        except ValueError as error:
            raise ValueError(
                f"data.size={sum(sizes)}, data.batch_size={data.batch_size}, hyp.sub_batch={sub_batch}: {error}; "
                "change one of these, or leave out a smaller last block by data.drop_last=True"
            ) from error


def build_problem(run: Run, seed: int, group: Group = ALONE, data: ImageData | None = None) -> Problem:
    """Set PyTorch's global flags and build the problem; ``ValueError`` and ``OSError`` for the user's mistakes.

    Args:
        run: the settings.
        seed: of the run.
        group: the processes that share the run.
        data: the data of the run, where they are loaded already.
    """
    set_up_machine(run, group.ranks.local_size)
    with about("impl"):
        device = find_device(run.impl.device, group.ranks.local_rank if group.size > 1 else None)
    data = build_data(run, seed) if data is None else data
    arithmetic = build_arithmetic(run, device)
    model = build_model(run, data, seed, device)
    optimizer = build_optimizer(run.hyp, model)
    loader = build_loader(run, data, data.train, seed, device)
    max_blocks = 1 if run.dryrun else None
    blocks = loader.blocks(0)[:max_blocks]
    objective = build_objective(run, model, optimizer, blocks, arithmetic)
    require_compatible(model, blocks, len(data.classes))
    return Problem(run, seed, device, arithmetic, data, model, optimizer, loader, objective, max_blocks)


def require_compatible(model: nn.Module, blocks: BlockSequence, classes: int) -> None:
    """Raise ``ValueError`` where the model does not take the images of the blocks, or has another number of outputs."""
    inputs = next(iter(blocks[:1])).inputs[:1]  # outside of ``about``: what augmentation refuses is about the data
    with about("model"):
        check_compatible(model, inputs, classes)


def set_up_machine(run: Run, processes: int = 1) -> None:
    """Set PyTorch's global flags as the settings say, for one of several ``processes`` of this machine."""
    impl = run.impl
    set_up(
        threads=impl.threads,
        benchmark=impl.benchmark,
        deterministic=impl.deterministic,
        processes=processes,
        tf32=not subtracts_gradients(run.hyp) if impl.tf32 == "auto" else impl.tf32,
    )


def build_model(run: Run, data: ImageData, seed: int, device: torch.device) -> nn.Module:
    """Build the model with its own random numbers or the weights of a file, on the device."""
    options = dataclasses.asdict(run.model)
    weights = options.pop("weights")
    family = options.pop("family", None) or options.pop("name")
    with about("model"), seeded(Stream.WEIGHTS.seed(seed), torch.device("cpu")):
        model = model_named(family, channels=data.channels, classes=len(data.classes), pixels=data.pixels, **options)
    model.to(device=device, dtype=build_arithmetic(run, device).dtype)
    if weights is not None:
        with about(f"model.weights={weights}"):
            load_weights(model, read_model(Path(weights)).weights)
        log.info("initial weights from %s", weights)
    return order_weights(model, MEMORY_FORMATS[run.impl.memory])


def build_objective(
    run: Run, model: nn.Module, optimizer: Optimizer, blocks: BlockSequence, arithmetic: Arithmetic | None = None
) -> FullBatchObjective:
    """Build the training objective with its regularizer."""
    hyp, arithmetic = run.hyp, arithmetic or build_arithmetic(run, device_of(model))
    warn_of_rounding(run, arithmetic)
    regularizer = None
    with about("hyp.grad_reg"):
        implementation_named(hyp.grad_reg.implementation)  # an unknown name is an error in any case
        if is_regularized(hyp):
            options = dataclasses.asdict(hyp.grad_reg)
            options.pop("norm")
            regularizer = GradientPenalty(optimizer, **options)
    return FullBatchObjective(
        model,
        build_loss(hyp),
        blocks,
        sub_batch=hyp.sub_batch,
        regularizer=regularizer,
        batch_clip=None if hyp.batch_clip is None else ClipByNorm(hyp.batch_clip, norm_order(hyp)),
        arithmetic=arithmetic,
        gradient_average=hyp.gradient_average,
    )


def norm_order(hyp: Hyp) -> float:
    """Return the order of the norm that is clipped."""
    return math.inf if hyp.grad_clip_norm == "inf" else 2.0
