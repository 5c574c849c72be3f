"""The exact objective of a module on a whole data set: loss, gradient and Hessian-vector products, block by block.

With N samples cut into sub-batches b of n_b samples each, with mean losses l_b and gradients g_b,

    L = sum_b n_b/N l_b,    g = sum_b n_b/N g_b,

which is one autograd over all the data at once, whatever the partition, as long as the model has no batch statistics.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fullbatch.objective.block_pass import Pass, Passes, straight
from fullbatch.objective.evaluations import Evaluation, LossEvaluation, ValueEvaluation
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.objective.hessian_products import implementation_named
from fullbatch.objective.in_flight import Find, InFlight, Stream
from fullbatch.objective.means import MovingAverage, WeightedMean
from fullbatch.objective.replay import Recorder, Replays, replayed
from fullbatch.objective.sub_batch import BlockObjective
from fullbatch.objective.uncompiled import uncompiled
from fullbatch.randomness import derive_seed
from fullbatch.tensors import clones, device_of, global_norm, preserved, trainable
from fullbatch.transforms.clipping import clip_by_norm_
from fullbatch.typing import Block, Blocks, LossFunction, Tensors

Data = Blocks | Iterable[tuple[Tensor, Tensor]]


class FullBatchObjective:
    """The objective of ``model`` on ``data``, exact and without a trace.

    Evaluations use the model in the mode it is in (training or evaluation) and repeat: dropout masks depend on the
    block and on nothing else; parameters, buffers and random number generators stay as they are. Only with
    ``update_buffers=True`` do batch-norm statistics move, once per sub-batch.

    Args:
        model: any module that maps inputs to outputs.
        loss_fn: (outputs, labels) -> mean loss of the sub-batch.
        data: something that yields the same (inputs, labels) blocks each time it is iterated: a list of pairs, a
            ``DataLoader`` without shuffling, or ``fullbatch.typing.Blocks``, whose keys then seed dropout.
        sub_batch: a block of n samples is one forward pass per max(n // sub_batch, 1) nearly equal parts; None: one.
        copies: how many consecutive rows of the inputs are copies of one sample (Maxup); a part has all of a sample's.
        regularizer: a ``GradRegularizer`` around the same model.
        batch_clip: clip each (regularized) sub-batch gradient to this norm before averaging.
        batch_clip_norm: the order of that norm, 2 or ``math.inf``.
        mixed_precision: evaluate under autocast; True for the device's default dtype, or a dtype.
        loss_scale: backward passes are of so many times the loss, and what they find is divided by it: a power of two
            that keeps gradients of float16 (6e-8 to 65504) from becoming 0 or infinite, and else changes nothing. The
            regularizer has its own.
        accumulation_dtype: sums are kept in this dtype, or in the parameters' own where that is more precise.
        gradient_average: ``exact``, or ``moving`` for the average that the paper's code first released.
        all_reduce: adds a list of tensors up over all processes in place, where each has its own part of the data;
            called once for each pass. None for a single one.
        recorder: records the work of sub-batches of one shape, to be replayed; None: none is. See
            ``fullbatch.runtime.cuda_graphs``.
        streams: each has a sub-batch in flight and a copy of the parameters; none: one after the other. See
            ``fullbatch.runtime.cuda_streams``.
        seed: seeds the dropout of blocks that carry no key.

    Raises:
        ValueError: for an unknown ``gradient_average``, ``moving`` with several processes, or data without a sample.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Data,
        *,
        sub_batch: int | None = None,
        copies: int = 1,
        regularizer: GradRegularizer | None = None,
        batch_clip: float | None = None,
        batch_clip_norm: float = 2.0,
        mixed_precision: bool | torch.dtype = False,
        loss_scale: float = 1.0,
        accumulation_dtype: torch.dtype = torch.float32,
        gradient_average: str = "exact",
        all_reduce: Callable[[Tensors], None] | None = None,
        recorder: Recorder | None = None,
        streams: Sequence[Stream] = (),
        seed: int = 0,
    ) -> None:
        if gradient_average not in ("exact", "moving"):
            raise ValueError(f"gradient_average={gradient_average}: accepted are exact and moving")
        if gradient_average == "moving" and all_reduce is not None:
            raise ValueError("gradient_average=moving depends on the order of the sub-batches: one process only")
        self.model, self.data = model, data
        self.sub_batch, self.copies, self.regularizer = sub_batch, copies, regularizer
        self.accumulation_dtype, self.gradient_average = accumulation_dtype, gradient_average
        self.passes, self.seed = straight(all_reduce), seed
        self.replays = None if recorder is None else Replays(recorder)
        self.in_flight = InFlight(model, streams) if streams else None
        self.block_objective = BlockObjective(
            model,
            loss_fn,
            regularizer=regularizer,
            clip=None if batch_clip is None else lambda grads: clip_by_norm_(grads, batch_clip, batch_clip_norm)[1],
            mixed_precision=mixed_precision,
            loss_scale=loss_scale,
        )

    def over(self, data: Data, passes: Passes | None = None) -> "FullBatchObjective":
        """Return the same objective on other data, gone through by other ``passes`` where given."""
        other = copy.copy(self)
        other.data, other.passes = data, passes or self.passes
        return other

    def plain(self, sub_batch: int | None = None) -> "FullBatchObjective":
        """Return L itself on the same data: no regularizer, no clip, the exact mean; in parts of ``sub_batch``."""
        other = copy.copy(self)
        other.regularizer, other.gradient_average = None, "exact"
        other.sub_batch = sub_batch or self.sub_batch
        other.block_objective = self.block_objective.plain()
        return other

    def loss(self) -> LossEvaluation:
        """Return L and the accuracy by forward passes alone."""
        means = self._scalar_means(2)
        with preserved(list(self.model.buffers())):
            self._go(lambda block: [self.block_objective.loss(block)], means)
        loss, accuracy = means.value()
        return LossEvaluation(loss=loss, accuracy=accuracy, num_samples=means.weight)

    @property
    def regularized(self) -> bool:
        """Whether the regularizer adds something now, so that the objective's value needs gradients."""
        return self.regularizer is not None and self.regularizer.active

    def value(self) -> ValueEvaluation:
        """Return L and the penalty, by forward passes alone or, where ``regularized``, one pass of plain gradients."""
        if not self.regularized:
            found = self.loss()
            return ValueEvaluation(**vars(found), penalty=torch.zeros_like(found.loss), evaluations=0)
        with preserved(list(self.model.buffers())):
            plain = self._pass_over_data(plain=True)
        penalty = self._penalty(plain.squared_norms, plain.gradient)
        return ValueEvaluation(
            loss=plain.loss,
            accuracy=plain.accuracy,
            num_samples=plain.num_samples,
            penalty=penalty,
            evaluations=plain.evaluations,
        )

    def evaluate(self, *, update_buffers: bool = False) -> Evaluation:
        """Return L and its gradient; with acc_strength, a first pass computes gbar for the second."""
        first_pass = contextlib.nullcontext() if update_buffers else preserved(list(self.model.buffers()))
        if not self.regularized or self.regularizer is None or self.regularizer.acc_strength == 0:
            with first_pass:
                return self._pass_over_data(moves_buffers=update_buffers)
        with first_pass:
            plain = self._pass_over_data(plain=True, moves_buffers=update_buffers)
        with preserved(list(self.model.buffers())):
            evaluation = self._pass_over_data(plain.gradient)
        return replace(evaluation, evaluations=plain.evaluations + evaluation.evaluations)

    @torch.no_grad()
    def ignores_keys(self) -> bool:
        """Return whether the model draws no random numbers and moves no buffers: tried on the first sub-batch.

        Then evaluations of the same samples are the same function, whatever the keys of the blocks.
        """
        block, buffers = next(self.sub_batches()), list(self.model.buffers())
        before = clones(buffers)
        with preserved(buffers):
            losses = [self.block_objective.loss(block._replace(key=key)).loss for key in (block.key, block.key + 1)]
            unmoved = all(torch.equal(old, new) for old, new in zip(before, buffers, strict=True))
        return unmoved and torch.equal(*losses)

    def hessian_product(self, v: Tensors, implementation: str = "autograd", eps: float = 1e-2) -> list[Tensor]:
        """Return H v of L (without any regularizer) for ``v`` shaped like the trainable parameters.

        ``implementation`` as in ``GradRegularizer``: autograd and forward-over-reverse are exact; differences use eps.
        """
        method = implementation_named(implementation)
        mean = WeightedMean(v, self.accumulation_dtype)

        def product(block: Block) -> list[Tensors]:
            point = self.block_objective.point(block)
            gradient = point.gradient(create_graph=method.needs_graph)
            return [method.product(point, gradient, lambda: v, eps)]

        with preserved(list(self.model.buffers())), uncompiled() if method.exact else contextlib.nullcontext():
            self._go(product, mean)
        return mean.value()

    def _pass_over_data(
        self, mean_gradient: Tensors | None = None, *, plain: bool = False, moves_buffers: bool = False
    ) -> Evaluation:
        gradient, means = self._gradient_mean(), self._scalar_means(4)

        def find(block: Block) -> list[Tensors]:
            found = self.block_objective.gradient(block, mean_gradient, plain=plain)
            clipped = found.clipped / self._num_samples(block)
            return [found.gradient, [found.loss, found.accuracy, found.squared_norm, clipped]]

        self._go(find, gradient, means, moves_buffers=moves_buffers)
        loss, accuracy, squared_norms, clipped = means.value()
        regularizer = None if plain else self.regularizer
        return Evaluation(
            loss=loss,
            accuracy=accuracy,
            num_samples=means.weight,
            gradient=gradient.value(),
            squared_norms=squared_norms,
            penalty=self._penalty(squared_norms, mean_gradient) if regularizer else torch.zeros_like(loss),
            num_clipped=clipped * means.weight,
            evaluations=1 + (regularizer.extra_evaluations if regularizer else 0),
        )

    def reduce(self, sums: Tensors) -> None:
        """Add tensors up over the processes that share the data, in place, as a pass does."""
        self.passes(Pass(self.model, [], self._split, lambda block: None, list(sums), False))

    def _go(self, find: Find, *means: WeightedMean | MovingAverage, moves_buffers: bool = False) -> None:
        sums = [tensor for mean in means for tensor in mean.tensors]
        parts = (self.model, self.data, self._split)

        def add(found: list[Tensors], block: Block) -> None:
            for mean, values in zip(means, found, strict=True):
                mean.add(values, self._num_samples(block))

        if self.in_flight is not None:
            flights = self.in_flight.of(find, add, self.replays, moves_buffers=moves_buffers)
            self.passes(Pass(*parts, flights, sums, moves_buffers, flights.settle))
            return
        visit = replayed(lambda block: add(find(block), block), self.replays)
        self.passes(Pass(*parts, visit, sums, moves_buffers))

    def _penalty(self, squared_norms: Tensor, mean_gradient: Tensors | None) -> Tensor:
        assert self.regularizer is not None
        return self.regularizer.penalty(
            squared_norms, 0.0 if mean_gradient is None else global_norm(mean_gradient).square()
        )

    def sub_batches(self, chunks: int = 1) -> Iterator[Block]:
        """Yield the forward passes of one evaluation, in order; or ``chunks`` times as many smaller parts."""
        for sub_batches in self._split(self.data, chunks):
            yield from sub_batches

    def _split(self, data: Data, chunks: int = 1) -> Iterator[list[Block]]:
        device = device_of(self.model)
        for index, (inputs, labels, *key) in enumerate(cast(Iterable[tuple[Any, ...]], data)):
            block_key = int(key[0]) if key else derive_seed(self.seed, index)
            count = self._num_sub_batches(len(labels) // self.copies, chunks)
            pieces = zip(self._cut(inputs.to(device), count), self._cut(labels.to(device), count), strict=True)
            yield [Block(*rows, derive_seed(block_key, piece)) for piece, rows in enumerate(pieces)]

    def _cut(self, rows: Tensor, count: int) -> Sequence[Tensor]:
        if self.copies == 1:
            return rows.tensor_split(count)
        return [part.flatten(0, 1) for part in rows.unflatten(0, (-1, self.copies)).tensor_split(count)]

    def _num_samples(self, block: Block) -> int:
        return len(block.labels) // self.copies

    def num_sub_batches(self, chunks: int = 1) -> int:
        """Return how many parts ``sub_batches`` yields."""
        return sum(self._num_sub_batches(size, chunks) for size in self._sizes())

    def _num_sub_batches(self, size: int, chunks: int = 1) -> int:
        count = 1 if self.sub_batch is None else max(size // self.sub_batch, 1)
        return min(chunks * count, size) if chunks > 1 else count

    def _sizes(self) -> Sequence[int]:
        if hasattr(self.data, "sizes"):
            return cast(Sequence[int], self.data.sizes)
        return [len(labels) // self.copies for _, labels, *_ in self.data]

    def _gradient_mean(self) -> WeightedMean | MovingAverage:
        parameters = trainable(self.model)
        if self.gradient_average == "exact":
            return WeightedMean(parameters, self.accumulation_dtype)
        return MovingAverage(parameters, self.num_sub_batches(), self.accumulation_dtype)

    def _scalar_means(self, count: int) -> WeightedMean:
        device = device_of(self.model)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return WeightedMean([torch.zeros((), dtype=dtype, device=device)] * count)
