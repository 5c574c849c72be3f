"""From settings to the arithmetic of a run, and to compiled models."""

import logging
from typing import Literal

import torch

from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.hessian_products import implementation_named
from fullbatch.runtime.compilation import compile_model
from fullbatch.runtime.device import DTYPES, has_fast_bfloat16
from fullbatch.settings import Hyp, Run
from fullbatch.tensors import device_of

log = logging.getLogger(__name__)

LOSS_SCALE = 2.0**10
"""The loss scale of ``impl.grad_scaling=True``."""


def build_arithmetic(run: Run, device: torch.device) -> Arithmetic:
    """Return dtypes, autocast and loss scale.

    ``impl.mixed_precision=True`` is bfloat16, and so is ``auto`` where the device has it, unless gradients are
    subtracted from each other, which magnifies rounding.
    """
    impl = run.impl
    autocast: Literal[False] | torch.dtype = torch.bfloat16 if impl.mixed_precision is True else False
    if impl.mixed_precision == "float16":
        autocast = torch.float16
    elif impl.mixed_precision == "auto":
        is_single = DTYPES[impl.dtype] == torch.float32
        if is_single and has_fast_bfloat16(device) and not subtracts_gradients(run.hyp):
            autocast = torch.bfloat16
    scale = impl.grad_scaling
    if isinstance(scale, bool):
        scale = LOSS_SCALE if scale else 1.0
    return Arithmetic(DTYPES[impl.dtype], autocast, scale, DTYPES[impl.accumulation_dtype])


def warn_of_rounding(run: Run, arithmetic: Arithmetic) -> None:
    """Log a warning where low precision spoils the gradients of such a run."""
    if arithmetic.autocast == torch.float16 and run.impl.grad_scaling is False:
        log.warning("impl.mixed_precision=float16: gradients below 6e-8 become 0; impl.grad_scaling=True keeps them")
    if arithmetic.autocast and subtracts_gradients(run.hyp):
        name = str(arithmetic.autocast).removeprefix("torch.")
        log.warning("hyp.grad_reg: differences of %s gradients magnify its rounding; see docs/regularizer.md", name)


def overflow_advice(run: Run) -> str:
    """Return advice for a diverged run whose gradients may have exceeded the range of float16; else an empty string."""
    if run.impl.mixed_precision != "float16":
        return ""
    return " (float16 gradients overflow above 65504: try a smaller impl.grad_scaling or impl.mixed_precision=bfloat16)"


def build_compiled(run: Run, objective: FullBatchObjective) -> bool:
    """Compile the model if requested, and return whether it is compiled.

    ``auto`` compiles on CUDA alone, where it pays. ``objective``: over one block, on which the compiled model is tried.
    """
    requested, model = run.impl.compile, objective.model
    possible = subtracts_gradients(run.hyp) or not is_regularized(run.hyp)
    if requested in (True, "reduce-overhead") and not possible:
        raise ValueError(
            f"impl.compile={requested}: not with hyp.grad_reg.implementation={run.hyp.grad_reg.implementation}, which "
            "differentiates gradients: those of compiled code have no derivative; use finite differences"
        )
    if requested is False or (requested == "auto" and not (possible and device_of(model).type == "cuda")):
        return False

    def trial() -> None:
        for training, evaluate in ((False, objective.loss), (True, objective.evaluate)):
            model.train(training)
            evaluate()

    return compile_model(model, trial, mode="reduce-overhead" if requested == "reduce-overhead" else None)


def is_regularized(hyp: Hyp) -> bool:
    """Return whether the gradient is regularized."""
    return hyp.grad_reg.block_strength != 0 or hyp.grad_reg.acc_strength != 0


def subtracts_gradients(hyp: Hyp) -> bool:
    """Return whether the regularizer is a difference of gradients, which magnifies their rounding."""
    return is_regularized(hyp) and not implementation_named(hyp.grad_reg.implementation).exact
