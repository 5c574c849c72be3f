"""How the gradients of the sub-batches scatter around the gradient of all the data."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.means import Welford
from fullbatch.tensors import dot, flatten, global_norm, in_places, preserved, trainable
from fullbatch.typing import Block, Tensors


@dataclass(frozen=True)
class GradientStatistics:
    """Of the gradients g_b of B sub-batches of n_b samples each, N in all, with mean g = sum_b n_b/N g_b.

    Where the samples are draws and tr S is the trace of the covariance of one sample's gradient, each g_b has the
    covariance S/n_b, and sum_b n_b ||g_b - g||^2 / (B - 1) is an unbiased estimate of tr S, whatever the sizes n_b.
    What needs two sub-batches is NaN where there is one.
    """

    mean: list[Tensor]
    """g."""
    spread: list[Tensor]
    """sum_b n_b/N (g_b - g)^2, entry by entry."""
    num_samples: float
    num_blocks: int
    norms: list[float]
    """||g_b|| of the sub-batches that this process has, in order."""
    mean_norm: float
    """||g||."""
    total_spread: float
    """The sum of ``spread``."""

    @property
    def mean_squared_norm(self) -> float:
        """sum_b n_b/N ||g_b||^2."""
        return self.total_spread + self.mean_norm**2

    @property
    def std_norm(self) -> float:
        """||std_b g_b||: the unbiased standard deviation over sub-batches of the mean size N/B, as a norm."""
        if self.num_blocks < 2:
            return math.nan
        return math.sqrt(self.total_spread * self.num_blocks / (self.num_blocks - 1))

    @property
    def snr(self) -> float:
        """||mean_b g_b|| / ||std_b g_b||; infinite where all sub-batches agree."""
        return math.inf if self.std_norm == 0 else self.mean_norm / self.std_norm

    @property
    def noise(self) -> float:
        """Unbiased estimate of tr S (McCandlish et al., 2018)."""
        return math.nan if self.num_blocks < 2 else self.num_samples * self.total_spread / (self.num_blocks - 1)

    @property
    def signal(self) -> float:
        """Unbiased estimate of the squared norm of the expected gradient, ||g||^2 - tr S/N; may be negative."""
        return self.mean_norm**2 - self.noise / self.num_samples

    @property
    def noise_scale(self) -> float:
        """The simple noise scale tr S / ||E g||^2, in samples; NaN where the estimate of the signal is not positive."""
        return self.noise / self.signal if self.signal > 0 else math.nan

    def norms_of_layers(self) -> list[float]:
        """Return the norm of each parameter's part of g."""
        return _numbers([torch.linalg.vector_norm(part) for part in self.mean])


def gradient_statistics(objective: FullBatchObjective, chunks: int = 1) -> GradientStatistics:
    """Compute the statistics of L's sub-batches in one pass over the data, without a trace.

    ``chunks`` cuts the data into so many times more sub-batches. Batch norm, in training mode, has the statistics of
    these smaller parts.
    """
    moments = Welford(trainable(objective.model), objective.accumulation_dtype)
    norms = []
    with preserved(list(objective.model.buffers())):
        for block in objective.sub_batches(chunks):
            found = objective.block_objective.gradient(block, plain=True)
            moments.add(found.gradient, len(block.labels) // objective.copies)
            norms.append(found.squared_norm.sqrt())
    mean, spread = moments.value(objective.reduce)
    total = torch.stack([part.sum() for part in spread]).sum()
    mean_norm, total_spread, *each = _numbers([global_norm(mean), total, *norms])
    return GradientStatistics(mean, spread, moments.weight, moments.count, each, mean_norm, total_spread)


def cosine(left: Tensors, right: Tensors) -> float:
    """Return <left, right> / (||left|| ||right||), NaN where one is 0."""
    product, one, other = _numbers([dot(left, right), global_norm(left), global_norm(right)])
    return product / (one * other) if one * other > 0 else math.nan


def gradient_curvature(objective: FullBatchObjective, gradient: Tensors) -> float:
    """Return g' H g / ||g||^2, the curvature of L along the gradient; NaN where that is 0."""
    product, squared = _numbers([dot(gradient, objective.hessian_product(gradient)), dot(gradient, gradient)])
    return product / squared if squared > 0 else math.nan


def batch_sharpness(batches: Iterable[FullBatchObjective]) -> float:
    """Return the mean over batches of g_b' H_b g_b / ||g_b||^2 (Andreyev & Beneventano, 2024).

    The curvature that a stochastic update meets along its own gradient; SGD keeps it near 2/lr. A batch whose gradient
    is 0 is left out.
    """
    found = [gradient_curvature(batch, batch.evaluate().gradient) for batch in batches]
    known = [value for value in found if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def sample_gradient_norms(objective: FullBatchObjective, max_entries: int = 2**26) -> list[float]:
    """Return the norm of each sample's own gradient, in the order of the data, without a trace.

    Samples are vectorized (``torch.func.vmap``), so many at once that their gradients have ``max_entries`` entries.
    Dropout draws a mask for each sample. The copies of a sample (Maxup) make one loss.

    Raises:
        ValueError: the model mixes the samples of a batch (batch norm in training mode), or cannot be vectorized.
    """
    require_separable(objective)
    size = sum(p.numel() for p in trainable(objective.model))
    with preserved(list(objective.model.buffers())):
        chunk = max(max_entries // size, 1)
        norms = [_norms_of_samples(objective, block, chunk) for block in objective.sub_batches()]
    return [float(norm) for norm in torch.cat(norms).cpu().double()]


def require_separable(objective: FullBatchObjective) -> None:
    """Raise ``ValueError`` naming the first layer that mixes the samples of a batch."""
    for name, module in objective.model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and (
            module.training or not module.track_running_stats
        ):
            kind = type(module).__name__
            raise ValueError(
                f"{name or 'the model'} ({kind}) mixes the samples of a batch in training mode, so that no sample has "
                "a gradient of its own; accepted: evaluation mode, or another normalization (groupnorm8)"
            )


def _norms_of_samples(objective: FullBatchObjective, block: Block, chunk: int) -> Tensor:
    from torch.func import functional_call, grad, vmap  # noqa: PLC0415 (slow to import)

    model, evaluate = objective.model, objective.block_objective
    values, scale = [p.detach() for p in trainable(model)], evaluate.loss_scale
    parts = [rows.unflatten(0, (-1, objective.copies)) for rows in (block.inputs, block.labels)]

    def loss(values: list[Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        named, point = in_places(model, values), evaluate.point(Block(inputs, labels, block.key))
        return scale * point.loss(lambda some: functional_call(model, named, (some,), tie_weights=False))

    def squared_norm(inputs: Tensor, labels: Tensor) -> Tensor:
        return flatten(grad(loss)(values, inputs, labels)).square().sum()

    try:
        return vmap(squared_norm, randomness="different", chunk_size=chunk)(*parts).detach().sqrt() / scale
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"gradients of single samples: this model cannot be vectorized ({reason})") from error


def _numbers(scalars: list[Tensor]) -> list[float]:
    numbers: list[float] = torch.stack([s.detach().double().cpu() for s in scalars]).tolist()
    return numbers
