"""Statistics of the gradients of sub-batches and of single samples: mean, spread, noise scale, curvature."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fullbatch.objective.arguments import accepts_data
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.means import Welford
from fullbatch.tensors import dot, flatten, global_norm, in_places, preserved, trainable
from fullbatch.typing import Block, Tensors


@dataclass(frozen=True)
class GradientStatistics:
    """Statistics of the gradients g_b of B sub-batches of n_b samples each, N in all, with mean g = sum_b n_b/N g_b.

    If the samples are independent draws and S is the covariance of one sample's gradient, g_b has the covariance S/n_b,
    and sum_b n_b ||g_b - g||^2 / (B - 1) is an unbiased estimate of tr S for any sizes n_b. Quantities that need two
    sub-batches are NaN for one.
    """

    mean: list[Tensor]
    """g."""
    spread: list[Tensor]
    """sum_b n_b/N (g_b - g)^2, entry by entry."""
    num_samples: float
    num_blocks: int
    norms: list[float]
    """||g_b|| of the sub-batches of this process, in order."""
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
        """||mean_b g_b|| / ||std_b g_b||; infinite where all g_b are equal."""
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


@accepts_data
def gradient_statistics(objective: FullBatchObjective, chunks: int = 1) -> GradientStatistics:
    """Compute the statistics of the sub-batches of L in one pass over the data; the model is restored bitwise.

    ``chunks`` divides the data into this many times more sub-batches. In training mode, batch norm uses the statistics
    of these smaller sub-batches. ``model, loss_fn, data`` may be given in place of ``objective``.
    """
    moments = Welford(trainable(objective.model), objective.arithmetic.accumulation_dtype)
    norms = []
    with preserved(list(objective.model.buffers())):
        for block in objective.sub_batches(chunks):
            evaluation = objective.sub_batch_objective.plain().gradient(block)
            moments.add(evaluation.gradient, len(block.labels) // objective.copies)
            norms.append(evaluation.squared_norm.sqrt())
    mean, spread = moments.value(objective.reduce)
    total = torch.stack([part.sum() for part in spread]).sum()
    mean_norm, total_spread, *block_norms = _numbers([global_norm(mean), total, *norms])
    return GradientStatistics(mean, spread, moments.weight, moments.count, block_norms, mean_norm, total_spread)


def cosine(left: Tensors, right: Tensors) -> float:
    """Return <left, right> / (||left|| ||right||), NaN if either is 0."""
    product, left_norm, right_norm = _numbers([dot(left, right), global_norm(left), global_norm(right)])
    return product / (left_norm * right_norm) if left_norm * right_norm > 0 else math.nan


@accepts_data
def gradient_curvature(objective: FullBatchObjective, gradient: Tensors, implementation: str = "autograd") -> float:
    """Return g' H g / ||g||^2, the curvature of L along the gradient g; NaN if g is 0.

    ``model, loss_fn, data`` may be given in place of ``objective``.
    """
    product = dot(gradient, objective.hessian_product(gradient, implementation))
    along, squared = _numbers([product, dot(gradient, gradient)])
    return along / squared if squared > 0 else math.nan


def batch_sharpness(batches: Iterable[FullBatchObjective], implementation: str = "autograd") -> float:
    """Return the mean over batches of g_b' H_b g_b / ||g_b||^2 (Andreyev & Beneventano, 2024).

    The curvature of each batch along its own gradient; SGD keeps it near 2/lr. Batches whose gradient is 0 are skipped.
    """
    curvatures = [gradient_curvature(batch, batch.evaluate().gradient, implementation) for batch in batches]
    defined = [value for value in curvatures if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


@accepts_data
def sample_gradient_norms(objective: FullBatchObjective, max_entries: int = 2**26) -> list[float]:
    """Return the norm of the gradient of each single sample, in the order of the data; the model is restored bitwise.

    Samples are vectorized (``torch.func.vmap``), as many at once as have ``max_entries`` entries in their gradients.
    Dropout draws a mask for each sample. The copies of a sample (Maxup) have one loss. ``model, loss_fn, data`` may be
    given in place of ``objective``.

    Raises:
        ValueError: the model mixes the samples of a batch (batch norm in training mode), or cannot be vectorized.
    """
    require_separable(objective)
    size = sum(p.numel() for p in trainable(objective.model))
    with preserved(list(objective.model.buffers())):
        chunk = max(max_entries // size, 1)
        norms = [_norms_of_samples(objective, block, chunk) for block in objective.sub_batches()]
    return [float(norm) for part in norms for norm in part.cpu().double()]


def require_separable(objective: FullBatchObjective) -> None:
    """Raise ``ValueError`` naming the first layer that mixes the samples of a batch."""
    for name, module in objective.model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and (
            module.training or not module.track_running_stats
        ):
            kind = type(module).__name__
            raise ValueError(
                f"{name or 'the model'} ({kind}) mixes the samples of a batch in training mode, so that single samples "
                "have no gradient; accepted: evaluation mode, or another normalization (groupnorm8)"
            )


def _norms_of_samples(objective: FullBatchObjective, block: Block, chunk: int) -> Tensor:
    from torch.func import functional_call, grad, vmap  # noqa: PLC0415 (slow to import)

    model, evaluate = objective.model, replace(objective.sub_batch_objective, first_pass=None)
    values, scale = [p.detach() for p in trainable(model)], evaluate.arithmetic.loss_scale
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
