"""The exact objective of a module on a whole data set: loss, gradient and Hessian-vector products, block by block.

With N samples cut into sub-batches b of n_b samples each, with mean losses l_b and gradients g_b,

    L = sum_b n_b/N l_b,    g = sum_b n_b/N g_b,

which is one autograd over all the data at once, whatever the partition, as long as the model has no batch statistics.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.block_pass import BlockPass, Pass, SequentialPass
from fullbatch.objective.blocks import BLOCK_SIZE, Data, as_blocks, iterate
from fullbatch.objective.checks import FirstPass
from fullbatch.objective.evaluations import Evaluation, LossEvaluation, ValueEvaluation
from fullbatch.objective.gradient_penalty import GradientPenalty
from fullbatch.objective.hessian_products import implementation_named
from fullbatch.objective.means import MovingAverage, WeightedMean
from fullbatch.objective.sub_batch import SubBatchGradient, SubBatchObjective
from fullbatch.randomness import derive_seed
from fullbatch.tensors import clones, device_of, dtype_of, global_norm, preserved, trainable
from fullbatch.transforms.clipping import ClipByNorm
from fullbatch.typing import Block, LossFunction, Tensors


class FullBatchObjective:
    """The objective of ``model`` on ``data``, exact and without side effects.

    Evaluations use the model in the mode it is in (training or evaluation) and are repeatable: dropout masks depend on
    the block and on nothing else; parameters, buffers and random number generators stay as they are. Only with
    ``update_buffers=True`` do batch-norm statistics change, once per sub-batch.

    Args:
        model: any module that maps inputs to outputs.
        loss_fn: (outputs, labels) -> mean loss of the sub-batch. Where it has an attribute ``copies``, so many
            consecutive rows of the inputs are copies of one sample (Maxup), and a sub-batch has all of a sample's.
            That it is a mean is tested in the first pass, unless it has an attribute ``check_mean = False``.
        data: a tuple (inputs, labels), a list of such blocks, a ``Dataset``, a ``DataLoader`` without shuffling, or
            ``fullbatch.typing.Blocks``, whose keys then seed dropout; see ``fullbatch.objective.blocks.as_blocks``.
        sub_batch: a block of n samples is one forward pass per max(n // sub_batch, 1) nearly equal parts; None: one.
            Data that do not come in blocks are cut into blocks of ``sub_batch`` samples, by default 128.
        regularizer: a ``GradientPenalty``, or a ``GradRegularizer`` around the same model.
        batch_clip: clip each (regularized) sub-batch gradient to this 2-norm, or with this ``ClipByNorm``, before
            averaging.
        arithmetic: autocast, loss scale and accumulation dtype of all evaluations, the regularizer's included.
        gradient_average: ``exact``, or ``moving`` for the average that the paper's code first released.
        block_pass: how the blocks are visited; one after the other in this process by default. With several processes,
            each with its own part of the data: ``SequentialPass(all_reduce)``.

    Raises:
        ValueError: for an unknown ``gradient_average``, a loss of PyTorch with ``reduction="sum"`` or class weights,
            data of another kind, an iterator, or a ``DataLoader`` that shuffles; in the first pass, for any other loss
            that is not a mean over samples, and for a model or a loss that fails on the data; in every pass, for
            data without samples, or a block without samples or with other numbers of inputs and labels.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Data,
        *,
        sub_batch: int | None = None,
        regularizer: GradientPenalty | None = None,
        batch_clip: float | ClipByNorm | None = None,
        arithmetic: Arithmetic | None = None,
        gradient_average: str = "exact",
        block_pass: BlockPass | None = None,
    ) -> None:
        if gradient_average not in ("exact", "moving"):
            raise ValueError(f"gradient_average={gradient_average}: accepted are exact and moving")
        if not isinstance(model, nn.Module) or device_of(model).type == "meta":
            kind = "on the meta device, without values" if isinstance(model, nn.Module) else type(model).__name__
            raise ValueError(f"model: {kind}; expected a torch.nn.Module with parameters")
        self.model, self.regularizer, self.gradient_average = model, regularizer, gradient_average
        self.block_pass: BlockPass = block_pass or SequentialPass()
        self.copies: int = getattr(loss_fn, "copies", 1)
        self.sub_batch = _positive(sub_batch)
        self.data = as_blocks(data, self.copies * (self.sub_batch or BLOCK_SIZE))
        clip = ClipByNorm(batch_clip) if isinstance(batch_clip, int | float) else batch_clip
        self._first_pass = FirstPass(loss_fn)
        self.sub_batch_objective = SubBatchObjective(
            model, loss_fn, regularizer, clip, arithmetic or Arithmetic(), self._first_pass
        )

    @property
    def arithmetic(self) -> Arithmetic:
        """Autocast, loss scale and accumulation dtype."""
        return self.sub_batch_objective.arithmetic

    @property
    def regularized(self) -> bool:
        """Whether the penalty is not zero now, so that the objective's value needs gradients."""
        return self.regularizer is not None and self.regularizer.active

    def over(
        self, data: Data, block_pass: BlockPass | None = None, sub_batch: int | None = None
    ) -> "FullBatchObjective":
        """Return the same objective on other data, with another ``block_pass`` or ``sub_batch`` where given."""
        other = copy.copy(self)
        other.sub_batch = _positive(sub_batch) or self.sub_batch
        other.data = as_blocks(data, self.copies * (other.sub_batch or BLOCK_SIZE))
        other.block_pass = block_pass or self.block_pass
        return other

    def plain(self, sub_batch: int | None = None) -> "FullBatchObjective":
        """Return L itself on the same data: no regularizer, no clip, the exact mean; in parts of ``sub_batch``."""
        other = self._without_penalty()
        other.gradient_average, other.sub_batch = "exact", _positive(sub_batch) or self.sub_batch
        return other

    def _without_penalty(self) -> "FullBatchObjective":
        other = copy.copy(self)
        other.regularizer, other.sub_batch_objective = None, self.sub_batch_objective.plain()
        return other

    def loss(self) -> LossEvaluation:
        """Return L and the accuracy by forward passes alone."""
        means = self._scalar_means(2)
        with preserved(list(self.model.buffers())):
            self.block_pass(self._pass(self.sub_batch_objective.loss, means.add, means.tensors))
        loss, accuracy = means.value()
        return LossEvaluation(loss=loss, accuracy=accuracy, num_samples=means.weight)

    def value(self) -> ValueEvaluation:
        """Return L and the penalty, by forward passes alone or, where ``regularized``, one pass of plain gradients."""
        if self.regularizer is None or not self.regularizer.active:
            forward = self.loss()
            return ValueEvaluation(**vars(forward), penalty=torch.zeros_like(forward.loss), evaluations=0)
        plain = self._without_penalty().evaluate()
        return ValueEvaluation(
            loss=plain.loss,
            accuracy=plain.accuracy,
            num_samples=plain.num_samples,
            penalty=self.regularizer.penalty(plain.squared_norms, global_norm(plain.gradient).square()),
            evaluations=plain.evaluations,
        )

    def evaluate(self, *, update_buffers: bool = False) -> Evaluation:
        """Return L and its gradient; with acc_strength, a first pass computes gbar for the second.

        With ``update_buffers``, batch-norm statistics keep what the first pass has made of them.
        """
        regularizer, mean_gradient, evaluations = self.regularizer, None, 1
        if regularizer is not None and regularizer.active and regularizer.acc_strength != 0:
            mean_gradient = self._without_penalty().evaluate(update_buffers=update_buffers).gradient
            update_buffers, evaluations = False, 2
        gradient, scalars = self._gradient_mean(), self._scalar_means(4)

        def add(result: SubBatchGradient, num_samples: int) -> None:
            gradient.add(result.gradient, num_samples)
            numbers = [result.loss, result.accuracy, result.squared_norm, result.clipped / num_samples]
            scalars.add(numbers, num_samples)

        with contextlib.nullcontext() if update_buffers else preserved(list(self.model.buffers())):
            evaluate = partial(self.sub_batch_objective.gradient, mean_gradient=mean_gradient)
            self.block_pass(self._pass(evaluate, add, [*gradient.tensors, *scalars.tensors], update_buffers))
        loss, accuracy, squared_norms, clipped = scalars.value()
        penalty = torch.zeros_like(loss)
        if regularizer is not None:
            mean_norm = 0.0 if mean_gradient is None else global_norm(mean_gradient).square()
            penalty = regularizer.penalty(squared_norms, mean_norm)
            evaluations += regularizer.extra_evaluations
        return Evaluation(
            loss=loss,
            accuracy=accuracy,
            num_samples=scalars.weight,
            gradient=gradient.value(),
            squared_norms=squared_norms,
            penalty=penalty,
            num_clipped=clipped * scalars.weight,
            evaluations=evaluations,
        )

    @torch.no_grad()
    def ignores_keys(self) -> bool:
        """Return whether the model draws no random numbers and changes no buffers: tried on the first sub-batch.

        Then evaluations of the same samples are the same function, whatever the keys of the blocks.
        """
        block, buffers = next(self.sub_batches()), list(self.model.buffers())
        before = clones(buffers)
        with preserved(buffers):
            losses = [self.sub_batch_objective.loss(block._replace(key=key)).loss for key in (block.key, block.key + 1)]
            unchanged = all(torch.equal(old, new) for old, new in zip(before, buffers, strict=True))
        return unchanged and torch.equal(*losses)

    def hessian_product(self, v: Tensors, implementation: str = "autograd", eps: float = 1e-2) -> list[Tensor]:
        """Return H v of L (without any regularizer) for ``v`` shaped like the trainable parameters.

        ``implementation`` as in ``GradRegularizer``: autograd and forward-over-reverse are exact; differences use eps.
        """
        method = implementation_named(implementation)
        mean = WeightedMean(v, self.arithmetic.accumulation_dtype)

        def product(block: Block) -> list[Tensor]:
            point = self.sub_batch_objective.point(block)
            with self.sub_batch_objective.naming(block, "product"):
                gradient = point.gradient(create_graph=method.needs_graph)
                return method.product(point, gradient, lambda: v, eps)

        with preserved(list(self.model.buffers())):
            self.block_pass(self._pass(product, mean.add, mean.tensors))
        return mean.value()

    def reduce(self, sums: Tensors) -> None:
        """Add tensors up over the processes that share the data, in place, as a pass does."""
        self.block_pass.reduce(sums)

    def sub_batches(self, chunks: int = 1) -> Iterator[Block]:
        """Yield the forward passes of one evaluation, in order; or ``chunks`` times as many smaller parts."""
        for sub_batches in self._split(self.data, chunks):
            yield from sub_batches

    def num_sub_batches(self, chunks: int = 1) -> int:
        """Return the number of parts that ``sub_batches`` yields."""
        if hasattr(self.data, "sizes"):
            sizes: Sequence[int] = self.data.sizes
        else:
            sizes = [len(block.labels) // self.copies for block in iterate(self.data)]
        return sum(self._num_parts(size, chunks) for size in sizes)

    def _pass(
        self,
        evaluate: Callable[[Block], Any],
        add: Callable[[Any, int], None],
        sums: list[Tensor],
        updates_buffers: bool = False,
    ) -> Pass:
        """Return the pass over the data that calls ``add`` with each result and the number of its samples."""

        def add_result(result: Any, block: Block) -> None:
            add(result, len(block.labels) // self.copies)

        return Pass(self.model, self.data, self._split, evaluate, add_result, sums, updates_buffers)

    def _split(self, data: Data, chunks: int = 1) -> Iterator[list[Block]]:
        device, first_pass = device_of(self.model), self._first_pass
        required = data is self.data and getattr(self.block_pass, "has_all_data", False)
        num_sub_batches = 0
        for inputs, labels, key in iterate(data, required=required, dtype=dtype_of(self.model)):
            count = self._num_parts(len(labels) // self.copies, chunks)
            num_sub_batches += count
            first_pass.pending = num_sub_batches > first_pass.count
            pieces = zip(self._cut(inputs.to(device), count), self._cut(labels.to(device), count), strict=True)
            yield [Block(*rows, derive_seed(key, piece)) for piece, rows in enumerate(pieces)]

    def _cut(self, rows: Tensor, count: int) -> Sequence[Tensor]:
        if self.copies == 1:
            return rows.tensor_split(count)
        if len(rows) % self.copies:
            raise ValueError(f"data: {len(rows)} rows in a block; expected a multiple of {self.copies}, the copies")
        return [part.flatten(0, 1) for part in rows.unflatten(0, (-1, self.copies)).tensor_split(count)]

    def _num_parts(self, size: int, chunks: int = 1) -> int:
        count = 1 if self.sub_batch is None else max(size // self.sub_batch, 1)
        return min(chunks * count, size) if chunks > 1 else count

    def _gradient_mean(self) -> WeightedMean | MovingAverage:
        parameters, dtype = trainable(self.model), self.arithmetic.accumulation_dtype
        if not parameters:
            raise ValueError("model: no parameter requires a gradient; expected at least one")
        if self.gradient_average == "exact":
            return WeightedMean(parameters, dtype)
        return MovingAverage(parameters, self.num_sub_batches(), dtype)

    def _scalar_means(self, count: int) -> WeightedMean:
        device = device_of(self.model)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return WeightedMean([torch.zeros((), dtype=dtype, device=device)] * count)


def _positive(sub_batch: int | None) -> int | None:
    if sub_batch is not None and (not hasattr(sub_batch, "__index__") or isinstance(sub_batch, bool) or sub_batch < 1):
        raise ValueError(f"sub_batch={sub_batch!r}; expected a positive integer, or None for whole blocks")
    return None if sub_batch is None else int(sub_batch)
