"""One step: an update with the gradient of all the data, or an epoch of updates from a few blocks each.

Both are one code path; a full-batch step is the epoch whose only update consumes all the blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from fullbatch.objective.evaluations import Evaluation
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.randomness import derive_seed
from fullbatch.tensors import device_of, global_norm, trainable
from fullbatch.training.closure import StepClosure
from fullbatch.training.distributed_pass import DistributedPass
from fullbatch.training.state import Row
from fullbatch.transforms.chain import GradientTransform
from fullbatch.typing import Blocks

NOT_MEANS = ("param_norm", "num_clipped", "num_samples", "norm_after")
"""Columns that are not means over the samples."""
KNOWN = "known"
"""The key in the optimizer's state, and so in checkpoints, of what is known where the next step starts."""


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
        constant_data: whether ``data`` gives the same samples in every step. Where the model and the order allow it,
            too, all full-batch steps are one function, and what a search found at the point that it accepted begins the
            next step instead of being computed again.
        passes: goes through the blocks of an update.
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
    constant_data: bool = False
    passes: DistributedPass = field(default_factory=DistributedPass)
    _constant: bool | None = field(default=None, init=False)

    def __call__(self, step: int, *, stochastic: bool) -> Row:
        """Take step number ``step`` and return what the table of the run calls train_loss, full_loss and so on.

        Values are means over the samples of the step, each measured where its update started; one synchronization
        with the device, at the end. Raises ``DivergedError`` when the step is not finite.
        """
        parts = self._parts(step, stochastic=stochastic)
        updates = [
            self._update(blocks, derive_seed(self.seed, step, len(parts[0]) * number), whole=not stochastic)
            for number, blocks in enumerate(parts)
        ]
        with torch.no_grad():
            updates[-1]["norm_after"] = global_norm(trainable(self.objective.model))
        columns = _columns(updates)
        _refuse_what_is_not_finite(step, columns)
        return _summarize(columns)

    def objective_at(self, step: int) -> FullBatchObjective:
        """Return the objective of all samples of a step."""
        return self.objective.over(self.data.blocks(step, shuffle=self.shuffle)[: self.max_blocks])

    def objectives_at(self, step: int, *, stochastic: bool) -> list[FullBatchObjective]:
        """Return the objective of the samples of each update of a step."""
        return [self.objective.over(blocks) for blocks in self._parts(step, stochastic=stochastic)]

    def _parts(self, step: int, *, stochastic: bool) -> list[BlockSequence]:
        with_replacement = self.with_replacement and stochastic
        blocks = self.data.blocks(step, shuffle=self.shuffle, with_replacement=with_replacement)[: self.max_blocks]
        size = self.blocks_per_update if stochastic else len(blocks)
        return [blocks[start : start + size] for start in range(0, len(blocks), size)]

    def _update(self, blocks: BlockSequence, noise_seed: int, *, whole: bool) -> dict[str, Tensor]:
        objective = self.objective.over(blocks, self.passes)
        known = self._take_known(whole=whole)
        closure = StepClosure(objective, self.optimizer, self.transforms, noise_seed, known)
        self.optimizer.step(closure)  # type: ignore[arg-type]  # a loss may be a tensor
        if whole and (found := closure.last_here) is not None and self._is_constant(objective):
            content = {**vars(found), "norm": global_norm(trainable(objective.model)).detach()}
            self.optimizer.state[KNOWN] = content  # type: ignore[index]  # keys that are no tensors are kept as such
        counts = {"evaluations": closure.num_gradients, "loss_evaluations": closure.num_losses}
        extra = counts | getattr(self.optimizer, "statistics", {})
        report = closure.report
        return report | {name: torch.full_like(report["train_loss"], value) for name, value in extra.items()}

    def _take_known(self, *, whole: bool) -> Evaluation | None:
        """Return what the last step found where this one starts, None where somebody has moved the parameters since."""
        content = self.optimizer.state.pop(KNOWN, None)  # type: ignore[call-overload]
        if content is None or not whole:
            return None
        content = _moved(content, device_of(self.objective.model))
        norm = content.pop("norm")
        return Evaluation(**content) if torch.equal(norm, global_norm(trainable(self.objective.model))) else None

    def _is_constant(self, objective: FullBatchObjective) -> bool:
        if self._constant is None:  # two forward passes of a sub-batch, once in a run; a penalty changes with eta
            self._constant = self.constant_data and objective.regularizer is None and objective.ignores_keys()
        return self._constant and not self.shuffle


def _moved(content: dict[str, Any], device: torch.device) -> dict[str, Any]:
    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(entry) for entry in value]
        return value.to(device) if isinstance(value, Tensor) else value

    return {name: move(value) for name, value in content.items()}


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
    row = {name: float((weights * column).sum()) for name, column in columns.items() if name not in NOT_MEANS}
    row["grad_norm"] = row.pop("squared_norms") ** 0.5
    row["param_norm"] = float(columns["param_norm"][0])
    row["num_clipped"] = float(columns["num_clipped"].sum())
    return row
