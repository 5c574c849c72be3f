"""The cost of a run: operations, bytes and seconds, estimated before and measured after."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fullbatch.objective.flops import Flops, count_flops
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.runtime.peak import matmul_peak
from fullbatch.tensors import device_of
from fullbatch.training.step import BlockSequence, Step

_MIN_SECONDS = 10.0  # of training; counting operations takes two seconds, mostly to import PyTorch's counter


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a run; seconds are estimated from a few blocks, all other values are counted."""

    samples: int
    """The number of samples of the training set, with all its rounds."""
    steps: int
    evaluations: float
    """Gradient evaluations of all the samples per step."""
    loss_evaluations: float
    """Losses of all the samples by forward passes, per step."""
    validations: int
    validation_samples: int
    """Forward passes of single images per validation."""
    flops: Flops
    seconds_per_sample: float
    """Of a step."""
    seconds_per_loss: float
    """Of an image in validation."""

    @property
    def flops_per_step(self) -> float:
        """Floating-point operations per step."""
        return self.samples * (self.evaluations * self.flops.gradient + self.loss_evaluations * self.flops.loss)

    @property
    def seconds_per_step(self) -> float:
        """Seconds per step."""
        return self.samples * self.seconds_per_sample

    @property
    def seconds_per_validation(self) -> float:
        """Seconds per validation."""
        return self.validation_samples * self.seconds_per_loss

    @property
    def seconds(self) -> float:
        """Seconds of the run."""
        return self.steps * self.seconds_per_step + self.validations * self.seconds_per_validation

    @property
    def rate(self) -> float:
        """Floating-point operations per second of a step."""
        return self.flops_per_step / self.seconds_per_step


def speed(
    step: Step, precision: torch.dtype, *, processes: int = 1, min_seconds: float = _MIN_SECONDS
) -> dict[str, float]:
    """Return the measured speed of a run; empty if no step was timed.

    ``samples_per_second``: samples times gradient evaluations, a loss counting a third, by the time in training.
    ``peak_share``: its operations a second as a share of what the device reaches in matrix products of ``precision``
    now, times the ``processes``; left out of runs shorter than ``min_seconds``.
    """
    rows = [row for row in step.state.rows if "train_time" in row]
    seconds = sum(row["train_time"] for row in rows)
    if not rows:
        return {}
    blocks = step.data.blocks(0)[: step.sampling.max_blocks]
    gradients, losses = (sum(row.get(name, 0.0) for row in rows) for name in ("evaluations", "loss_evaluations"))
    measured = {"samples_per_second": sum(blocks.sizes) * (gradients + losses / 3) / seconds}
    if seconds >= min_seconds:
        flops = flops_of(step.objective, blocks)
        rate = sum(blocks.sizes) * (gradients * flops.gradient + losses * flops.loss) / seconds
        measured["peak_share"] = rate / (processes * matmul_peak(device_of(step.state.model), precision))
    return measured


def flops_of(objective: FullBatchObjective, blocks: BlockSequence) -> Flops:
    """Count the operations of the objective on two samples (batch norm needs them)."""
    inputs, labels, _ = next(iter(blocks[:1]))
    rows = 2 * objective.copies
    return count_flops(objective, [(inputs[:rows], labels[:rows])])


def num_due(steps: int, every: int) -> int:
    """Return the number of steps among 1, 1+n, 1+2n, ... and the last."""
    return (steps - 1) // every + 1 + ((steps - 1) % every != 0)


def num_bytes(tree: Any) -> int:
    """Return the bytes of the tensors in nested dictionaries and sequences."""
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    children = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (list, tuple)) else ()
    return sum(map(num_bytes, children))


def peak_bytes(device: torch.device) -> int | None:
    """Return the peak memory of this process: on CUDA that of the device; None where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415 (not on every system)

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
