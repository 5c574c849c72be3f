"""From settings to what makes evaluations fast: low precision, compiled code, recorded work."""

import logging
from collections.abc import Sequence
from typing import Literal

import torch

from fullbatch.objective.hessian_products import implementation_named
from fullbatch.objective.in_flight import Stream
from fullbatch.objective.replay import Recorder
from fullbatch.runtime.compilation import compile_model
from fullbatch.runtime.cuda_graphs import recorder_on
from fullbatch.runtime.cuda_streams import streams_on
from fullbatch.runtime.device import DTYPES, has_fast_bfloat16
from fullbatch.settings import Hyp, Run
from fullbatch.tensors import device_of
from fullbatch.training.step import Step

log = logging.getLogger(__name__)

LOSS_SCALE = 2.0**10
"""That of ``impl.grad_scaling=True``."""


def build_precision(run: Run, device: torch.device) -> Literal[False] | torch.dtype:
    """Return the low precision of forward passes, False for none.

    True is bfloat16, and so is ``auto`` where the device has it, unless gradients are subtracted from each other: that
    leaves rounding.
    """
    wanted = run.impl.mixed_precision
    if wanted == "float16":
        return torch.float16
    if wanted == "auto":
        single = DTYPES[run.impl.dtype] == torch.float32
        wanted = single and has_fast_bfloat16(device) and not subtracts_gradients(run.hyp)
    return torch.bfloat16 if wanted else False


def build_loss_scale(run: Run) -> float:
    """Return by what losses are multiplied before backward passes."""
    scaling = run.impl.grad_scaling
    if isinstance(scaling, bool):
        return LOSS_SCALE if scaling else 1.0
    return scaling


def warn_of_rounding(run: Run, low_precision: Literal[False] | torch.dtype) -> None:
    """Say what low precision does to the gradients of such a run, where it is much."""
    if low_precision == torch.float16 and run.impl.grad_scaling is False:
        log.warning("impl.mixed_precision=float16: gradients below 6e-8 become 0; impl.grad_scaling=True keeps them")
    if low_precision and subtracts_gradients(run.hyp):
        name = str(low_precision).removeprefix("torch.")
        log.warning("hyp.grad_reg: differences of %s gradients magnify its rounding; see docs/regularizer.md", name)


def overflow_advice(run: Run) -> str:
    """Return what to say of a run that diverged about the numbers that its gradients could not have; often nothing."""
    if run.impl.mixed_precision != "float16":
        return ""
    return " (gradients in float16 end at 65504: try a smaller impl.grad_scaling, or impl.mixed_precision=bfloat16)"


def build_recorder(run: Run, device: torch.device) -> Recorder | None:
    """Return what records the work of sub-batches, None for nothing."""
    wanted, recorder = run.impl.cuda_graphs, recorder_on(device)
    if wanted is True and recorder is None:
        raise ValueError(f"impl.cuda_graphs=True: needs a CUDA device, this is {device.type}; accepted: False, auto")
    return recorder if wanted else None


def build_streams(run: Run, device: torch.device) -> Sequence[Stream]:
    """Return what sub-batches are in flight in, nothing for one after the other."""
    number = run.impl.blocks_in_flight
    streams = streams_on(device, number) if number > 1 else []
    if number > 1 and not streams:
        raise ValueError(f"impl.blocks_in_flight={number}: needs a CUDA device, this is {device.type}; accepted: 1")
    return streams


def build_compiled(run: Run, step: Step) -> bool:
    """Compile the model if asked for, and return whether it is; ``auto`` is on CUDA alone, where it pays."""
    wanted, model = run.impl.compile, step.objective.model
    possible = subtracts_gradients(run.hyp) or not regularized(run.hyp)
    if wanted is True and not possible:
        raise ValueError(
            f"impl.compile=True: not with hyp.grad_reg.implementation={run.hyp.grad_reg.implementation}, which "
            "differentiates gradients: those of compiled code have no derivative; take differences"
        )
    if wanted is False or (wanted == "auto" and not (possible and device_of(model).type == "cuda")):
        return False
    first = step.objective.over(step.data.blocks(0)[:1])

    def trial() -> None:
        for training, evaluate in ((False, first.loss), (True, first.evaluate)):
            model.train(training)
            evaluate()

    return compile_model(model, trial)


def regularized(hyp: Hyp) -> bool:
    """Return whether the gradient is regularized."""
    return hyp.grad_reg.block_strength != 0 or hyp.grad_reg.acc_strength != 0


def subtracts_gradients(hyp: Hyp) -> bool:
    """Return whether the regularizer is a difference of gradients, which magnifies their rounding."""
    return regularized(hyp) and not implementation_named(hyp.grad_reg.implementation).exact
