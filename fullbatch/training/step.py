"""One step: an update with the gradient of all the data, or an epoch of updates from a few blocks each.

Both are one code path; a full-batch step is the epoch whose only update uses all the blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fullbatch.objective.blocks import ConstantBlocks, Data
from fullbatch.objective.evaluations import Evaluation
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.optim.eager import EagerOptimizer
from fullbatch.randomness import derive_seed
from fullbatch.tensors import device_of, dtype_of, global_norm, trainable
from fullbatch.training.closure import StepClosure
from fullbatch.training.distributed_pass import DistributedPass
from fullbatch.training.state import Row, TrainState
from fullbatch.transforms.chain import GradientTransform
from fullbatch.typing import Blocks

NOT_MEANS = ("param_norm", "num_clipped", "num_samples", "norm_after")
"""Columns that are not means over the samples."""


class DivergedError(RuntimeError):
    """The loss, the gradient or the parameters stopped being finite."""


class BlockSequence(Blocks, Protocol):
    """Blocks with a length, which can be sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> "BlockSequence": ...


class TrainingBlocks(Protocol):
    """Returns the blocks of a step, a pure function of the step."""

    @property
    def constant(self) -> bool:
        """Whether the samples are the same in every step."""
        ...

    def blocks(self, step: int, *, shuffle: bool = False, with_replacement: bool = False) -> BlockSequence:
        """Return all the samples, or as many drawn with replacement, in blocks."""
        ...


@dataclass(frozen=True)
class Sampling:
    """The blocks of a step, and how they are divided into updates.

    Args:
        shuffle: whether a step visits the samples in an order of its own.
        with_replacement: whether a stochastic step draws its samples with replacement.
        blocks_per_update: the number of blocks per update of a stochastic step.
        max_blocks: use only the first blocks of a step (for a dry run).
    """

    shuffle: bool = False
    with_replacement: bool = False
    blocks_per_update: int = 1
    max_blocks: int | None = None


class Step:
    """Takes steps; see ``__call__``.

    Args:
        state: the model, the optimizer (any ``torch.optim.Optimizer`` whose ``step`` takes a closure), and the
            evaluation that is carried from one step to the next.
        objective: the objective; its data is replaced by the blocks of each update.
        data: returns the blocks of each step; or data as in ``FullBatchObjective``, the same in every step.
        transforms: applied to the gradient of each update, in order.
        sampling: shuffling, replacement, and the size of an update.
        seed: of the noise.
        block_pass: visits the blocks of an update.
    """

    def __init__(
        self,
        state: TrainState,
        objective: FullBatchObjective,
        data: TrainingBlocks | Data,
        *,
        transforms: Sequence[GradientTransform] = (),
        sampling: Sampling | None = None,
        seed: int = 0,
        block_pass: DistributedPass | None = None,
    ) -> None:
        self.state, self.objective = state, objective
        returns_blocks = callable(getattr(data, "blocks", None))
        dtype = dtype_of(objective.model)
        self.data: Any = data if returns_blocks else ConstantBlocks(objective.over(data).data, dtype)
        self.transforms, self.sampling, self.seed = transforms, sampling or Sampling(), seed
        self.block_pass = block_pass or DistributedPass()
        self._constant: bool | None = None

    def __call__(self, step: int, *, stochastic: bool) -> Row:
        """Take step number ``step`` and return the columns of its row: train_loss, full_loss and so on.

        Values are means over the samples of the step, each measured where its update started; one synchronization
        with the device, at the end. Raises ``DivergedError`` when the step is not finite.
        """
        optimizer, parameters = self.state.optimizer, trainable(self.objective.model)
        parts, updates = self._parts(step, stochastic=stochastic), []
        for number, blocks in enumerate(parts):
            objective = self.objective.over(blocks, self.block_pass)
            noise_seed = derive_seed(self.seed, step, len(parts[0]) * number)
            closure = StepClosure(objective, optimizer, self.transforms, noise_seed, self._take_cached(stochastic))
            closure.update()
            if not stochastic and (last := closure.last_here) is not None and self._is_constant(objective):
                self.state.cached = {**vars(last), "norm": global_norm(parameters).detach()}
            counts = {"evaluations": closure.num_gradients, "loss_evaluations": closure.num_losses}
            extra = counts | (getattr(optimizer, "statistics", {}) if isinstance(optimizer, EagerOptimizer) else {})
            like = closure.report["train_loss"]
            updates.append(closure.report | {name: torch.full_like(like, value) for name, value in extra.items()})
        with torch.no_grad():
            updates[-1]["norm_after"] = global_norm(parameters)
        columns = _columns(updates)
        _require_finite(step, columns)
        return _means(columns)

    def objective_at(self, step: int) -> FullBatchObjective:
        """Return the objective of all samples of a step."""
        blocks = self.data.blocks(step, shuffle=self.sampling.shuffle)
        return self.objective.over(blocks[: self.sampling.max_blocks])

    def objectives_at(self, step: int, *, stochastic: bool) -> list[FullBatchObjective]:
        """Return the objective of the samples of each update of a step."""
        return [self.objective.over(blocks) for blocks in self._parts(step, stochastic=stochastic)]

    def _parts(self, step: int, *, stochastic: bool) -> list[BlockSequence]:
        sampling = self.sampling
        with_replacement = sampling.with_replacement and stochastic
        blocks = self.data.blocks(step, shuffle=sampling.shuffle, with_replacement=with_replacement)
        blocks = blocks[: sampling.max_blocks]
        size = sampling.blocks_per_update if stochastic else len(blocks)
        return [blocks[start : start + size] for start in range(0, len(blocks), size)]

    def _take_cached(self, stochastic: bool) -> Evaluation | None:
        """Return the last step's evaluation at the current parameters; None if they have changed since."""
        content, self.state.cached = self.state.cached, None
        if content is None or stochastic:
            return None
        content = _to_device(content, device_of(self.objective.model))
        norm = content.pop("norm")
        return Evaluation(**content) if torch.equal(norm, global_norm(trainable(self.objective.model))) else None

    def _is_constant(self, objective: FullBatchObjective) -> bool:
        """Return whether all full-batch steps are one function of the parameters.

        Then the evaluation that a search has made at the accepted point serves as the first of the next step.
        """
        if self._constant is None:  # two forward passes of a sub-batch, once in a run; a penalty changes with eta
            self._constant = self.data.constant and objective.regularizer is None and objective.ignores_keys()
        return self._constant and not self.sampling.shuffle


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: _to_device(entry, device) for key, entry in value.items()}
    if isinstance(value, list):
        return [_to_device(entry, device) for entry in value]
    return value.to(device) if isinstance(value, Tensor) else value


def _columns(updates: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return one column per quantity with one entry per update, float64 on the CPU."""
    flat = torch.stack([value for update in updates for value in update.values()]).cpu().double()  # the step's one sync
    values = iter(flat)
    rows = [{name: next(values) for name in update} for update in updates]
    return {name: torch.stack([row[name] for row in rows if name in row]) for name in updates[-1]}


def _require_finite(step: int, columns: dict[str, Tensor]) -> None:
    checked = {
        "training loss": columns["train_loss"],
        "gradient norm": columns["full_grad_norm"],
        "parameter norm after the update": columns["norm_after"],
    }
    wrong = {name: column[~column.isfinite()] for name, column in checked.items()}
    listed = ", ".join(f"{name} {float(column[0]):g}" for name, column in wrong.items() if len(column))
    if listed:
        raise DivergedError(f"step {step + 1} is not finite: {listed}")


def _means(columns: dict[str, Tensor]) -> Row:
    weights = columns["num_samples"] / columns["num_samples"].sum()
    row = {name: float((weights * column).sum()) for name, column in columns.items() if name not in NOT_MEANS}
    row["grad_norm"] = row.pop("squared_norms") ** 0.5
    row["param_norm"] = float(columns["param_norm"][0])
    row["num_clipped"] = float(columns["num_clipped"].sum())
    return row
