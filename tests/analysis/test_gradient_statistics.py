"""Gradient statistics compared to gradients of sub-batches and samples that are computed one by one."""

import math

import pytest
import torch
from cases import MODELS, PARTITIONS, SHARING, WITHOUT_BATCH_STATISTICS, build, cut, samples
from references import assert_no_trace, dense_hessian, loss_and_gradient, trace_of, vector
from torch import Tensor
from torch.nn import functional as F

from fullbatch import gradient_statistics
from fullbatch.analysis.gradient_statistics import (
    batch_sharpness,
    cosine,
    gradient_curvature,
    sample_gradient_norms,
)
from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.losses import loss_function
from fullbatch.objective.means import Welford
from fullbatch.typing import Tensors

SIZES = [3, 11, 1, 16, 2]


def gradients(name: str, sizes: list[int]) -> Tensor:
    """Return the gradient of each block, [B, n]."""
    model = build(name)
    return torch.stack([loss_and_gradient(model, loss_function(), *b)[1] for b in cut(*samples(), sizes)])


def objective(name: str, sizes: list[int], **options: int) -> FullBatchObjective:
    return FullBatchObjective(build(name), loss_function(), cut(*samples(), sizes), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WITHOUT_BATCH_STATISTICS)
@pytest.mark.parametrize("sizes", PARTITIONS.values(), ids=PARTITIONS.keys())
def test_mean_and_spread_are_those_of_all_blocks(name: str, sizes: list[int]) -> None:
    each, weights = gradients(name, sizes), torch.tensor(sizes).double() / sum(sizes)
    mean = weights @ each
    statistics = gradient_statistics(objective(name, sizes))
    assert torch.allclose(vector(statistics.mean), mean, rtol=1e-10, atol=1e-14)
    assert torch.allclose(vector(statistics.spread), weights @ (each - mean).square(), rtol=1e-9, atol=1e-14)
    assert statistics.norms == pytest.approx(each.norm(dim=1).tolist())
    assert statistics.mean_squared_norm == pytest.approx(float(weights @ each.square().sum(dim=1)))
    assert (statistics.num_samples, statistics.num_blocks) == (33, len(sizes))


def test_snr_is_the_quotient_of_norms() -> None:
    each = gradients("tanh", [11, 11, 11])
    statistics = gradient_statistics(objective("tanh", [11, 11, 11]))
    assert statistics.std_norm == pytest.approx(float(each.std(dim=0).norm()))
    assert statistics.snr == pytest.approx(float(each.mean(dim=0).norm() / each.std(dim=0).norm()))


def test_the_noise_scale_equals_the_estimate_from_norms_of_small_and_large_batches() -> None:
    """McCandlish et al. (2018), appendix A.1, for blocks of one size."""
    each = gradients("tanh", [11, 11, 11])
    small, large = each.square().sum(dim=1).mean(), each.mean(dim=0).square().sum()
    signal, noise = (33 * large - 11 * small) / (33 - 11), (small - large) / (1 / 11 - 1 / 33)
    statistics = gradient_statistics(objective("tanh", [11, 11, 11]))
    assert statistics.signal == pytest.approx(float(signal))
    assert statistics.noise == pytest.approx(float(noise))
    assert statistics.noise_scale == pytest.approx(float(noise / signal))


def test_samples_as_blocks_give_the_covariance_of_samples() -> None:
    each = gradients("linear", [1] * 33)
    statistics = gradient_statistics(objective("linear", [33]), chunks=33)
    assert statistics.noise == pytest.approx(float(each.var(dim=0).sum()))
    assert statistics.num_blocks == 33


def test_the_estimates_are_unbiased_for_uneven_blocks() -> None:
    """Draws from a distribution of given covariance replace the gradients of samples."""
    generator = torch.Generator().manual_seed(0)
    truth, noises, signals = torch.tensor([1.0, -2.0, 0.5]).double(), [], []
    for _ in range(1500):
        moments, draws = Welford([truth]), truth + 3 * torch.randn(33, 3, generator=generator, dtype=torch.float64)
        for part in draws.split(SIZES):
            moments.add([part.mean(dim=0)], len(part))
        mean, spread = moments.value()
        noises.append(33 * float(spread[0].sum()) / (len(SIZES) - 1))
        signals.append(float(mean[0].square().sum()) - noises[-1] / 33)
    assert sum(noises) / 1500 == pytest.approx(27, rel=0.04)
    assert sum(signals) / 1500 == pytest.approx(5.25, rel=0.05)


def test_a_single_block_has_no_spread() -> None:
    statistics = gradient_statistics(objective("tanh", [33]))
    assert all(
        math.isnan(value) for value in (statistics.std_norm, statistics.snr, statistics.noise, statistics.noise_scale)
    )


def test_norms_of_layers() -> None:
    statistics = gradient_statistics(objective("tanh", SIZES))
    assert statistics.norms_of_layers() == pytest.approx([float(part.norm()) for part in statistics.mean])
    assert sum(norm**2 for norm in statistics.norms_of_layers()) == pytest.approx(statistics.mean_norm**2)


@pytest.mark.parametrize("name", MODELS)
def test_it_leaves_no_trace(name: str) -> None:
    target = objective(name, [20, 13], sub_batch=7)
    before = trace_of(target.model)
    gradient_statistics(target, chunks=2)
    gradient_curvature(target, target.evaluate().gradient)
    batch_sharpness([target])
    assert_no_trace(target.model, before)


def test_welford_is_stable_where_a_difference_of_squares_is_not() -> None:
    values = [torch.tensor([1e9 + value], dtype=torch.float64) for value in (4.0, 7.0, 13.0, 16.0)]
    moments = Welford(values[:1])
    for value in values:
        moments.add([value], 1.0)
    mean, spread = moments.value()
    assert mean[0].item() == 1e9 + 10
    assert spread[0].item() == pytest.approx(22.5, rel=1e-12)


def test_processes_together_compute_the_moments_of_one_process() -> None:
    """Three threads replace the processes."""
    generator = torch.Generator().manual_seed(0)
    values = [[torch.randn(4, generator=generator).double()] for _ in range(7)]
    weights = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    single = Welford(values[0])
    parts = [Welford(values[0]) for _ in range(3)]
    for number, (value, weight) in enumerate(zip(values, weights, strict=True)):
        single.add(value, weight)
        parts[number % 3].add(value, weight)
    exact = single.value()
    for reduced in reduced_together(parts):
        for ours, theirs in zip(reduced, exact, strict=True):
            assert torch.allclose(ours[0], theirs[0], rtol=1e-12)


def reduced_together(parts: list[Welford]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Call ``value`` of all parts at once, in threads, with a sum over them."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    barrier, shared = Barrier(len(parts)), {}

    def reduce(number: int, tensors: Tensors) -> None:
        shared[number] = [tensor.clone() for tensor in tensors]
        barrier.wait()
        sums = [torch.stack(list(same)).sum(dim=0) for same in zip(*(shared[n] for n in sorted(shared)), strict=True)]
        barrier.wait()
        for tensor, total in zip(tensors, sums, strict=True):
            tensor.copy_(total)

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(lambda n: parts[n].value(lambda tensors: reduce(n, tensors)), range(len(parts))))


def test_the_cosine() -> None:
    assert cosine([torch.tensor([3.0, 0.0])], [torch.tensor([1.0, 1.0])]) == pytest.approx(0.5**0.5)
    assert math.isnan(cosine([torch.zeros(2)], [torch.ones(2)]))


def test_the_curvature_along_the_gradient() -> None:
    target, (inputs, labels) = objective("tanh", SIZES), samples()
    g = loss_and_gradient(target.model, loss_function(), inputs, labels)[1]
    exact = g @ dense_hessian(target.model, loss_function(), inputs, labels) @ g / (g @ g)
    assert gradient_curvature(target, target.evaluate().gradient) == pytest.approx(float(exact))


def test_batch_sharpness_is_the_mean_over_batches() -> None:
    target = objective("tanh", [33])
    exact = []
    for block in cut(*samples(), SIZES):
        g = loss_and_gradient(target.model, loss_function(), *block)[1]
        exact.append(float(g @ dense_hessian(target.model, loss_function(), *block) @ g / (g @ g)))
    mean_sharpness = batch_sharpness(target.over([block]) for block in cut(*samples(), SIZES))
    assert mean_sharpness == pytest.approx(sum(exact) / len(exact))


@pytest.mark.parametrize("name", [*WITHOUT_BATCH_STATISTICS, *SHARING])
def test_gradients_of_samples_are_those_of_blocks_of_one(name: str) -> None:
    target = objective(name, SIZES)
    before = trace_of(target.model)
    norms = sample_gradient_norms(target, max_entries=1 if name == "tanh" else 2**26)
    assert_no_trace(target.model, before)
    assert norms == pytest.approx(gradients(name, [1] * 33).norm(dim=1).tolist())


@pytest.mark.parametrize("scale", [1.0, 2.0**20])
def test_gradients_of_samples_in_float16_need_scaled_losses(scale: float) -> None:
    model, (inputs, labels) = build("tanh").float(), samples()
    blocks, loss_fn = [(inputs.float(), labels)], lambda *some: 2.0**-20 * F.cross_entropy(*some)
    exact = sample_gradient_norms(FullBatchObjective(model, loss_fn, blocks))
    low = FullBatchObjective(model, loss_fn, blocks, arithmetic=Arithmetic(autocast=torch.float16, loss_scale=scale))
    assert (sample_gradient_norms(low) == pytest.approx(exact, rel=0.02)) == (scale > 1)


def test_copies_of_a_sample_have_one_loss() -> None:
    model, (inputs, labels) = build("tanh"), samples(12)
    maxup = loss_function("maxup-3")
    target = FullBatchObjective(model, maxup, [(inputs, labels)])
    exact = [loss_and_gradient(model, maxup, inputs[i : i + 3], labels[i : i + 3])[1].norm() for i in range(0, 12, 3)]
    assert sample_gradient_norms(target) == pytest.approx([float(norm) for norm in exact])


def test_batch_norm_has_no_gradients_of_samples_in_training_mode() -> None:
    target = objective("batchnorm", [33])
    with pytest.raises(ValueError, match=r"^1 \(BatchNorm2d\) mixes the samples .*evaluation mode"):
        sample_gradient_norms(target)
    target.model.eval()
    before = trace_of(target.model)
    norms = sample_gradient_norms(target)
    assert_no_trace(target.model, before)
    exact = [loss_and_gradient(target.model, loss_function(), *b)[1].norm() for b in cut(*samples(), [1] * 33)]
    assert norms == pytest.approx([float(norm) for norm in exact])


def test_dropout_draws_the_same_masks_again() -> None:
    target = objective("dropout", [33])
    assert sample_gradient_norms(target) == sample_gradient_norms(target)
