"""One step: an update with the gradient of all the data, or an epoch of updates from a few blocks each.

Both are one code path; a full-batch step is the epoch whose only update consumes all the blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fullbatch.objective.full_batch import Evaluation, FullBatchObjective
from fullbatch.optim.weight_decay import decay_penalty
from fullbatch.randomness import derive_seed, seeded
from fullbatch.tensors import device_of, global_norm, trainable
from fullbatch.training.state import Row
from fullbatch.transforms.chain import GradientTransform, Statistics, chain
from fullbatch.typing import Blocks

MEANS = ("train_loss", "train_acc", "full_loss", "squared_norms", "full_grad_norm", "update_norm")


class DivergedError(RuntimeError):
    """The loss, the gradient or the parameters stopped being finite."""


class BlockSequence(Blocks, Protocol):
    """Blocks that can be counted and cut."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> "BlockSequence": ...


class TrainingBlocks(Protocol):
    """Gives the blocks of a step, a pure function of the step."""

    def blocks(self, step: int, *, shuffle: bool = False, with_replacement: bool = False) -> BlockSequence:
        """Return all the samples, or as many drawn with replacement, in blocks."""
        ...


@dataclass
class Step:
    """Takes steps; see ``__call__``.

    Args:
        objective: the objective; its data is replaced by the blocks of each update.
        optimizer: any ``torch.optim.Optimizer`` whose ``step`` takes a closure.
        transforms: applied to the gradient of each update, in order.
        data: gives the blocks.
        shuffle: whether a step visits the samples in an order of its own.
        with_replacement: whether a stochastic step draws its samples with replacement.
        blocks_per_update: how many blocks make an update of a stochastic step.
        seed: of the noise.
        max_blocks: use only the first blocks of a step (for a dry run).
    """

    objective: FullBatchObjective
    optimizer: Optimizer
    transforms: Sequence[GradientTransform]
    data: TrainingBlocks
    shuffle: bool = False
    with_replacement: bool = False
    blocks_per_update: int = 1
    seed: int = 0
    max_blocks: int | None = None

    def __call__(self, step: int, *, stochastic: bool) -> Row:
        """Take step number ``step`` and return what the table of the run calls train_loss, full_loss and so on.

        Values are means over the samples of the step, each measured where its update started; one synchronization
        with the device, at the end. Raises ``DivergedError`` when the step is not finite.
        """
        with_replacement = self.with_replacement and stochastic
        blocks = self.data.blocks(step, shuffle=self.shuffle, with_replacement=with_replacement)[: self.max_blocks]
        size = self.blocks_per_update if stochastic else len(blocks)
        updates = [
            self._update(blocks[start : start + size], derive_seed(self.seed, step, start))
            for start in range(0, len(blocks), size)
        ]
        with torch.no_grad():
            updates[-1]["norm_after"] = global_norm(trainable(self.objective.model))
        columns = _columns(updates)
        _refuse_what_is_not_finite(step, columns)
        return _summarize(columns)

    def _update(self, blocks: BlockSequence, noise_seed: int) -> dict[str, Tensor]:
        closure = _Closure(self.objective.over(blocks), self.optimizer, self.transforms, noise_seed)
        self.optimizer.step(closure)  # type: ignore[arg-type]  # a loss may be a tensor
        return closure.report


class _Closure:
    """Evaluates the objective for the optimizer; only the first evaluation moves batch-norm statistics and reports."""

    def __init__(
        self,
        objective: FullBatchObjective,
        optimizer: Optimizer,
        transforms: Sequence[GradientTransform],
        noise_seed: int,
    ) -> None:
        self.objective, self.optimizer, self.transforms = objective, optimizer, transforms
        self.noise_seed = noise_seed
        self.report: dict[str, Tensor] = {}

    def __call__(self) -> Tensor:
        """Set the gradients of the parameters and return the full loss."""
        model = self.objective.model
        evaluation = self.objective.evaluate(update_buffers=not self.report)
        with seeded(self.noise_seed, device_of(model)):
            statistics = chain(self.transforms, evaluation.gradient, trainable(model))
        for parameter, gradient in zip(trainable(model), evaluation.gradient, strict=True):
            parameter.grad = gradient
        full_loss = evaluation.loss + evaluation.penalty + decay_penalty(self.optimizer)
        if not self.report:
            self.report = _describe(evaluation, full_loss, statistics, model)
        else:
            self.report["evaluations"] = self.report["evaluations"] + evaluation.evaluations
        return full_loss


@torch.no_grad()
def _describe(evaluation: Evaluation, full_loss: Tensor, statistics: Statistics, model: nn.Module) -> dict[str, Tensor]:
    return {
        "train_loss": evaluation.loss,
        "train_acc": evaluation.accuracy,
        "full_loss": full_loss,
        "squared_norms": evaluation.squared_norms,
        **statistics,
        "param_norm": global_norm(trainable(model)).square(),
        "num_clipped": evaluation.num_clipped,
        "num_samples": evaluation.num_samples,
        "evaluations": torch.full_like(evaluation.loss, evaluation.evaluations),
    }


def _columns(updates: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return a column for each quantity with a row for each update, float64 on the CPU."""
    flat = torch.stack([value for update in updates for value in update.values()]).cpu().double()  # the step's one sync
    values = iter(flat)
    rows = [{name: next(values) for name in update} for update in updates]
    return {name: torch.stack([row[name] for row in rows if name in row]) for name in updates[-1]}


def _refuse_what_is_not_finite(step: int, columns: dict[str, Tensor]) -> None:
    watched = {
        "training loss": columns["train_loss"],
        "gradient norm": columns["full_grad_norm"],
        "parameter norm after the update": columns["norm_after"],
    }
    wrong = {name: column[~column.isfinite()] for name, column in watched.items()}
    shown = ", ".join(f"{name} {float(column[0]):g}" for name, column in wrong.items() if len(column))
    if shown:
        raise DivergedError(f"step {step + 1} is not finite: {shown}")


def _summarize(columns: dict[str, Tensor]) -> Row:
    weights = columns["num_samples"] / columns["num_samples"].sum()
    row = {name: float((weights * columns[name]).sum()) for name in MEANS}
    row["grad_norm"] = row.pop("squared_norms") ** 0.5
    row["param_norm"] = float(columns["param_norm"][0])
    row["num_clipped"] = float(columns["num_clipped"].sum())
    row["evaluations"] = float((weights * columns["evaluations"]).sum())
    return row
